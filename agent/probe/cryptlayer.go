package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// describeLayer turns a layer into evidence. Contradictions come with a
// subject that is relative to the layer: "type".
func (r *volumeReader) describeLayer(ctx context.Context, l layer) (*posturev1.StorageLayer, []*posturev1.Contradiction) {
	switch l.kind {
	case posturev1.LayerType_LAYER_TYPE_LUKS1,
		posturev1.LayerType_LAYER_TYPE_LUKS2,
		posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL:
		return r.describeLUKS(ctx, l)
	case posturev1.LayerType_LAYER_TYPE_PLAIN_CRYPT:
		return r.describePlain(ctx, l)
	case posturev1.LayerType_LAYER_TYPE_BITLOCKER:
		out := &posturev1.StorageLayer{
			Type:       l.kind,
			VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_NONE,
			Reason:     "BitLocker metadata is not read on Linux",
		}
		out.KeyFile, _ = r.keyFile(l)
		return out, nil
	default:
		return &posturev1.StorageLayer{Type: l.kind}, nil
	}
}

// describeLUKS believes a header only when it is the one that the mapping was
// opened from: a detached header leaves the device without one, or with an old
// one that says nothing of the mapping. Without any, the kernel tells what the
// mapping does.
func (r *volumeReader) describeLUKS(ctx context.Context, l layer) (*posturev1.StorageLayer, []*posturev1.Contradiction) {
	out := &posturev1.StorageLayer{Type: l.kind, VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_NONE}
	var reason string
	out.KeyFile, reason = r.keyFile(l)
	table, errTable := r.table(ctx, l)

	h, err := r.storage.header(l)
	switch {
	case err != nil && errTable == nil && !table.others:
		byTable(out, table)
		out.Reason = reason
		return out, nil
	case errors.Is(err, errNoLUKS):
		out.Reason = "no LUKS header on the device: it is detached"
		return out, nil
	case err != nil:
		out.Reason = err.Error()
		return out, nil
	}
	var contradictions []*posturev1.Contradiction
	if says := h.kind(); says != l.kind {
		contradictions = append(contradictions, contradiction("type", kindName(l.kind), kindName(says)))
	}
	if !l.openedFrom(h) {
		contradictions = append(contradictions, contradiction("header", "opened from another header", h.cipher))
	}
	if contradictions != nil {
		out.Reason = "the header on the device is not that of the mapping"
		return out, contradictions
	}
	if errTable == nil && !table.agrees(h) {
		c := contradiction("cipher", cmp.Or(table.cipher, "not dm-crypt"), h.cipher)
		c.SourceA = "dm table"
		contradictions = append(contradictions, c)
	}
	out.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_HEADER
	out.Cipher = h.cipher
	out.KeyBits = h.keyBits
	out.Keyslots = h.keyslots
	out.Kdfs = h.kdfs
	out.TokenTypes = h.tokenTypes
	out.Requirements = h.requirements
	if h.keyInClear {
		out.KeyFile, reason = posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT, "a key slot keeps the volume key in clear"
	}
	out.Reason = reason
	return out, contradictions
}

// describePlain reports a mapping without a header. Only the kernel knows what
// it does; what crypttab says is an intention.
func (r *volumeReader) describePlain(ctx context.Context, l layer) (*posturev1.StorageLayer, []*posturev1.Contradiction) {
	out := &posturev1.StorageLayer{Type: l.kind, VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_NONE}
	var reason string
	out.KeyFile, reason = r.keyFile(l)
	switch table, err := r.table(ctx, l); {
	case err == nil && !table.others:
		byTable(out, table)
		out.Reason = reason
	case err == nil:
		out.Reason = "a part of the mapping is not dm-crypt's"
	default:
		out.Reason = "a dm-crypt mapping without a header: " + err.Error()
		r.intended(out, l.mapping)
	}
	h, err := r.storage.header(l)
	if err != nil || !strings.HasPrefix(l.uuid, "CRYPT-PLAIN-") {
		return out, nil
	}
	return out, []*posturev1.Contradiction{contradiction("type", kindName(l.kind), kindName(h.kind()))}
}

// byTable fills in what the kernel says of a mapping.
func byTable(out *posturev1.StorageLayer, t cryptTable) {
	out.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_TABLE
	out.Cipher = t.cipher
	out.KeyBits = t.keyBits
}

// intended fills in what crypttab says of a mapping without a header.
func (r *volumeReader) intended(out *posturev1.StorageLayer, mapping string) {
	e, ok := r.cryptEntry(mapping)
	if !ok {
		return
	}
	if cipher, ok := e.option("cipher"); ok {
		out.Cipher = word(cipher)
	}
	if size, ok := e.option("size"); ok {
		if bits, err := strconv.ParseUint(size, 10, 16); err == nil {
			out.KeyBits = uint32(bits)
		}
	}
}

// kind is the layer type that the header itself speaks of.
func (h *luksHeader) kind() posturev1.LayerType {
	switch {
	case h.version == 1:
		return posturev1.LayerType_LAYER_TYPE_LUKS1
	case h.opal:
		return posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL
	default:
		return posturev1.LayerType_LAYER_TYPE_LUKS2
	}
}

// openedFrom says whether a mapping was opened from this header: its
// device-mapper UUID is "CRYPT-", type, the header's UUID without hyphens and
// the name, joined by hyphens.
func (l layer) openedFrom(h *luksHeader) bool {
	for _, k := range mappingKinds {
		if rest, ok := strings.CutPrefix(l.uuid, k.prefix); ok {
			uuid, _, _ := strings.Cut(rest, "-")
			return uuid != "" && uuid == h.uuid
		}
	}
	return false
}

// partOf is true for the mappings that cryptsetup puts under a LUKS2 volume:
// dm-integrity, or the parts of one that is being encrypted anew. They carry
// the volume's UUID behind a type of their own.
func (l layer) partOf(volume layer) bool {
	own, of := strings.Split(l.uuid, "-"), strings.Split(volume.uuid, "-")
	return len(own) > 3 && len(of) > 3 && own[0] == "CRYPT" && of[0] == "CRYPT" &&
		own[1] != of[1] && own[2] != "" && own[2] == of[2]
}

func contradiction(subject, mapping, header string) *posturev1.Contradiction {
	return &posturev1.Contradiction{
		Subject: subject,
		SourceA: "dm/uuid", SaysA: mapping,
		SourceB: "header", SaysB: header,
	}
}

func kindName(kind posturev1.LayerType) string {
	return strings.TrimPrefix(kind.String(), "LAYER_TYPE_")
}

type headerReading struct {
	header *luksHeader
	err    error
}

// header reads the LUKS header under a crypt layer: from the device below it,
// or below what cryptsetup puts in between.
func (s *storage) header(crypt layer) (*luksHeader, error) {
	lower, err := s.below(crypt)
	for err == nil && len(lower) > 0 && lower[0].partOf(crypt) {
		lower, err = s.below(lower[0])
	}
	if err != nil {
		return nil, err
	}
	if len(lower) == 0 {
		return nil, errors.New("no device below the crypt layer")
	}
	dir := lower[0].dir
	read, ok := s.headers[dir]
	if !ok {
		read.header, read.err = s.readHeader(dir)
		s.headers[dir] = read
	}
	return read.header, read.err
}

func (s *storage) readHeader(dir string) (*luksHeader, error) {
	number, err := s.attribute(dir + "/dev")
	if err != nil {
		return nil, fmt.Errorf("reading a device number: %w", err)
	}
	node, err := s.files.Open("dev/block/" + number)
	if errors.Is(err, fs.ErrNotExist) { // these links are udev's; the kernel's own name is always there
		node, err = s.files.Open("dev/" + strings.ReplaceAll(path.Base(dir), "!", "/"))
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("reading the LUKS header needs root")
	case err != nil:
		return nil, fmt.Errorf("opening the device to read its LUKS header: %w", cause(err))
	}
	defer node.Close()
	h, err := parseLUKS(node)
	if err != nil {
		return nil, cause(err)
	}
	return h, nil
}

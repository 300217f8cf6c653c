package chip

import (
	"crypto"
	"encoding/asn1"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"pfoertner/internal/attest"
)

// Endorsement is who this TPM is.
type Endorsement struct {
	// Area is the public area of the endorsement key (TPMT_PUBLIC).
	Area []byte
	// Certificates are all that the manufacturer left in the TPM, DER: for this
	// key first, then for others and of the authorities above. None: makers of
	// firmware TPMs hand them out on the Internet only.
	Certificates [][]byte
	// Manufacturer and Firmware are as the TPM states them.
	Manufacturer, Firmware string

	template attest.Template
}

// Key is the public endorsement key.
func (e *Endorsement) Key() (crypto.PublicKey, error) { return attest.ParseEndorsementKey(e.Area) }

// Endorsement reads the endorsement key for which the TPM has a certificate;
// RSA-2048 if it has none. It is the same at every call and after TPM2_Clear.
func (c *Chip) Endorsement() (*Endorsement, error) {
	var e *Endorsement
	err := c.do("reading endorsement key", func(tpm transport.TPM) (err error) {
		e, err = c.endorsement(tpm)
		return err
	})
	return e, err
}

func (c *Chip) endorsement(tpm transport.TPM) (*Endorsement, error) {
	indices, err := nvIndices(tpm)
	if err != nil {
		return nil, err
	}
	templates := attest.EndorsementKeys()
	e := &Endorsement{template: templates[0]}
	if i := slices.IndexFunc(templates, func(t attest.Template) bool { return slices.Contains(indices, tpm2.TPMHandle(t.Certificate)) }); i >= 0 {
		e.template = templates[i]
	}
	if e.Certificates, err = certificates(tpm, indices, tpm2.TPMHandle(e.template.Certificate)); err != nil {
		return nil, err
	}
	if e.Manufacturer, e.Firmware, err = manufacturer(tpm); err != nil {
		return nil, err
	}
	key, err := openEndorsementKey(tpm, e.template)
	if err != nil {
		return nil, err
	}
	defer key.close(tpm)
	rsp, err := tpm2.ReadPublic{ObjectHandle: key.Handle}.Execute(tpm)
	if err != nil {
		return nil, err
	}
	e.Area = rsp.OutPublic.Bytes()
	return e, nil
}

// Where certificates lie (TCG EK Credential Profile 2.5, 2.2.1.4 and 2.2.1.5.2):
// of keys by the old templates, by the new ones, and of the authorities above
// them, which may go on from one index to the next.
const (
	firstIndex, lastIndex      tpm2.TPMHandle = 0x01C00002, 0x01C001FF
	firstHighRange             tpm2.TPMHandle = 0x01C00012
	lastHighRange              tpm2.TPMHandle = 0x01C00039
	firstAuthority             tpm2.TPMHandle = 0x01C00100
	lowRSA, lowECC                            = tpm2.TPMHandle(0x01C00002), tpm2.TPMHandle(0x01C0000A)
	maxCertificate, nvChunk                   = 8 << 10, 512
	maxCertificates, nvHandles                = 8, 256
)

// nvIndices returns the indices of manufacturers that are in use.
func nvIndices(tpm transport.TPM) ([]tpm2.TPMHandle, error) {
	var all []tpm2.TPMHandle
	for next := firstIndex; ; {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(next), PropertyCount: nvHandles}.Execute(tpm)
		if err != nil {
			return nil, err
		}
		list, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return nil, fmt.Errorf("%w: list of indices: %w", errRefused, err)
		}
		for _, h := range list.Handle {
			if h < next || h > lastIndex {
				return all, nil
			}
			all, next = append(all, h), h+1
		}
		if !rsp.MoreData || len(list.Handle) == 0 {
			return all, nil
		}
	}
}

// certificates reads all, those at own first. What the TPM does not give out is
// left out: it is the collector that decides what is missing. One that is busy is
// not one without certificates.
func certificates(tpm transport.TPM, indices []tpm2.TPMHandle, own tpm2.TPMHandle) ([][]byte, error) {
	var first, others, above []byte
	for _, index := range indices {
		isKey := index == lowRSA || index == lowECC || index >= firstHighRange && index <= lastHighRange
		if !isKey && index < firstAuthority {
			continue
		}
		raw, err := readNV(tpm, index)
		if unavailable(err) {
			return nil, err
		}
		switch {
		case err != nil:
		case index >= firstAuthority:
			above = append(above, raw...)
		case index == own:
			first = append(first, onlyDER(raw)...)
		default:
			others = append(others, onlyDER(raw)...)
		}
	}
	all := slices.Concat(split(first), split(others), split(above))
	return all[:min(len(all), maxCertificates)], nil
}

func readNV(tpm transport.TPM, index tpm2.TPMHandle) ([]byte, error) {
	pub, err := tpm2.NVReadPublic{NVIndex: index}.Execute(tpm)
	if err != nil {
		return nil, err
	}
	area, err := pub.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	var data []byte
	for size := min(int(area.DataSize), maxCertificate); len(data) < size; {
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: pub.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Size:       uint16(min(nvChunk, size-len(data))), Offset: uint16(len(data)),
		}.Execute(tpm)
		if err != nil {
			return nil, err
		}
		if len(rsp.Data.Buffer) == 0 {
			break
		}
		data = append(data, rsp.Data.Buffer...)
	}
	return data, nil
}

// onlyDER cuts off what fills the index behind a certificate.
func onlyDER(raw []byte) []byte {
	if c := split(raw); len(c) > 0 {
		return c[0]
	}
	return nil
}

// split takes certificates apart that lie one behind another. What is not DER
// ends it.
func split(raw []byte) [][]byte {
	var all [][]byte
	for len(raw) > 0 {
		var one asn1.RawValue
		rest, err := asn1.Unmarshal(raw, &one)
		if err != nil || one.Tag != asn1.TagSequence {
			break
		}
		all, raw = append(all, one.FullBytes), rest
	}
	return all
}

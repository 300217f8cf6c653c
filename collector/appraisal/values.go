package appraisal

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// maxValues is how many values of a path's lists a finding shows.
	maxValues = 12
	// maxValueRunes is how long a shown value is.
	maxValueRunes = 120
)

// viewer renders the values below one path for findings. Its steps are looked
// up once, when the policy is compiled.
type viewer struct {
	path  string
	root  string
	steps []step
}

// step goes from a message to one of its fields; entries: to each of its
// entries.
type step struct {
	field   protoreflect.FieldDescriptor
	entries bool
	// words are the short names of the field's enum.
	words map[protoreflect.EnumNumber]string
}

// newViewer returns false for a path that leads to nothing that can be shown.
func newViewer(path string) (viewer, bool) {
	names := strings.Split(path, ".")
	v := viewer{path: path, root: names[0]}
	at := rootDescriptor(v.root)
	for _, name := range names[1:] {
		name, entries := strings.CutSuffix(name, "[]")
		if at == nil {
			return v, false
		}
		field := at.Fields().ByName(protoreflect.Name(name))
		if field == nil || field.IsMap() {
			return v, false
		}
		s := step{field: field, entries: entries || field.IsList() && field.Message() != nil && !inOneLine(field)}
		if enum := field.Enum(); enum != nil {
			s.words = map[protoreflect.EnumNumber]string{}
			for i := range enum.Values().Len() {
				value := enum.Values().Get(i)
				s.words[value.Number()] = shortName(enum, string(value.Name()))
			}
		}
		v.steps = append(v.steps, s)
		at = field.Message()
	}
	return v, len(v.steps) > 0
}

func rootDescriptor(root string) protoreflect.MessageDescriptor {
	var m proto.Message
	switch root {
	case "evidence":
		m = &posturev1.Evidence{}
	case "attested":
		m = &posturev1.Attestation{}
	case "asset":
		m = &fleetv1.Asset{}
	case "device":
		m = &fleetv1.Device{}
	default:
		return nil
	}
	return m.ProtoReflect().Descriptor()
}

// values are the values that the path has below root.
func (v viewer) values(root protoreflect.Message) []*posturev1.Value {
	budget := maxValues
	return v.walk(nil, root, v.root, v.steps, &budget)
}

func (v viewer) walk(values []*posturev1.Value, m protoreflect.Message, path string, steps []step, budget *int) []*posturev1.Value {
	s := steps[0]
	path += "." + string(s.field.Name())
	if !s.entries {
		if len(steps) == 1 {
			*budget--
			return append(values, &posturev1.Value{Path: path, Value: s.render(m)})
		}
		return v.walk(values, m.Get(s.field).Message(), path, steps[1:], budget)
	}
	list := m.Get(s.field).List()
	if list.Len() == 0 {
		return append(values, &posturev1.Value{Path: path, Value: "none"})
	}
	for i := range list.Len() {
		if *budget <= 0 {
			return append(values, &posturev1.Value{Path: path, Value: strconv.Itoa(list.Len()-i) + " more"})
		}
		entry := path + "[" + strconv.Itoa(i) + "]"
		if len(steps) > 1 {
			values = v.walk(values, list.Get(i).Message(), entry, steps[1:], budget)
			continue
		}
		*budget--
		values = append(values, &posturev1.Value{Path: entry, Value: s.entry(list.Get(i))})
	}
	return values
}

// render is the field's value in short.
func (s step) render(m protoreflect.Message) string {
	v := m.Get(s.field)
	switch {
	case s.field.IsList():
		list := v.List()
		parts := make([]string, 0, min(list.Len(), maxValues))
		for i := range min(list.Len(), maxValues) {
			parts = append(parts, s.entry(list.Get(i)))
		}
		return orElse(short(strings.Join(parts, ", ")), "none")
	case s.field.Message() != nil && !m.Has(s.field):
		return "not reported"
	case s.field.Message() != nil:
		return summary(v.Message().Interface())
	}
	return s.scalar(v)
}

// entry is one entry of the field's list in short.
func (s step) entry(v protoreflect.Value) string {
	if s.field.Message() == nil {
		return s.scalar(v)
	}
	return summary(v.Message().Interface())
}

func (s step) scalar(v protoreflect.Value) string {
	switch s.field.Kind() {
	case protoreflect.EnumKind:
		return orElse(s.words[v.Enum()], strconv.Itoa(int(v.Enum())))
	case protoreflect.StringKind:
		return orElse(short(v.String()), "(empty)")
	case protoreflect.BytesKind:
		return orElse(hex.EncodeToString(v.Bytes()), "(empty)")
	}
	return short(v.String())
}

// inOneLine says whether a list of messages is shown in one value.
func inOneLine(field protoreflect.FieldDescriptor) bool {
	return field.Message().FullName() == (&posturev1.Pcr{}).ProtoReflect().Descriptor().FullName()
}

func referenceWord(r posturev1.PcrReference) string {
	switch r {
	case posturev1.PcrReference_PCR_REFERENCE_LEARNED:
		return "learned"
	case posturev1.PcrReference_PCR_REFERENCE_APPROVED:
		return "approved"
	case posturev1.PcrReference_PCR_REFERENCE_REJECTED:
		return "REJECTED"
	}
	return "new"
}

// updateSummary names an update; those of Windows have no versions.
func updateSummary(u *posturev1.PendingUpdate) string {
	if u.GetInstalledVersion() == "" && u.GetFixedVersion() == "" {
		return u.GetPackage()
	}
	return u.GetPackage() + " " + u.GetInstalledVersion() + " → " + u.GetFixedVersion()
}

// summary is a message in short, empty for messages of which there is none.
func summary(m proto.Message) string {
	switch m := m.(type) {
	case *timestamppb.Timestamp:
		return m.AsTime().UTC().Format(time.RFC3339)
	case *durationpb.Duration:
		return m.AsDuration().String()
	case *posturev1.Volume:
		return volumeSummary(m)
	case *posturev1.PendingUpdate:
		return short(updateSummary(m) + ", offered since " + dateWord(m.GetFirstSeenAt()))
	case *posturev1.Feed:
		return short(m.GetOrigin() + " " + m.GetCodename() + ", released " + dateWord(m.GetReleasedAt()) + ", fetched " + dateWord(m.GetFetchedAt()))
	case *posturev1.Patch:
		return strconv.Itoa(int(m.GetPendingSecurity())) + " security updates pending, " + strconv.Itoa(int(m.GetInstalledPackages())) + " packages"
	case *posturev1.Platform:
		return short(platformSummary(m))
	case *posturev1.VpnClient:
		return short(m.GetProduct() + " " + m.GetVersion() + ", installed " + ternaryWord(m.GetInstalled()) + ", session alive " + ternaryWord(m.GetSessionAlive()))
	case *posturev1.Pcr:
		return strconv.Itoa(int(m.GetIndex())) + " " + referenceWord(m.GetReference())
	case *posturev1.BootKey:
		return short(m.GetName() + " " + hex.EncodeToString(m.GetSha256()))
	case *posturev1.Reading:
		return short(strings.TrimPrefix(m.GetState().String(), "READING_STATE_") + " " + m.GetReason())
	case *posturev1.Firewall:
		return "engines: " + strconv.Itoa(len(m.GetEngines()))
	case *posturev1.FirewallEngine:
		name := strings.TrimSpace(m.GetEngine() + " " + m.GetProfile())
		return short(name + ", rules loaded " + ternaryWord(m.GetRulesLoaded()) + ", drops by default " + ternaryWord(m.GetInboundDefaultDrop()))
	case *posturev1.AntivirusProduct:
		state := strings.ToLower(strings.TrimPrefix(m.GetState().String(), "ANTIVIRUS_STATE_"))
		return short(m.GetName() + ", " + state + ", up to date " + ternaryWord(m.GetUpToDate()))
	case *posturev1.WindowsUpdate:
		return short("last search " + dateWord(m.GetLastSearchAt()) + ", last installation " + dateWord(m.GetLastInstallationAt()))
	}
	return "reported"
}

// platformSummary is the system and, on Windows, what its updates depend on:
// "windows 24H2, Enterprise, build 26100.8457, Client, hotpatch no".
func platformSummary(m *posturev1.Platform) string {
	name := m.GetDistribution() + " " + m.GetVersion()
	w := m.GetWindows()
	if w == nil {
		return name
	}
	return name + ", " + m.GetEdition() + ", build " + strconv.Itoa(int(w.GetBuild())) + "." + strconv.Itoa(int(w.GetUbr())) +
		", " + w.GetInstallationType() + ", hotpatch " + ternaryWord(w.GetHotpatch())
}

// volumeSummary shows what lies between a volume and the hardware:
// "ROOT ext4: luks2 aes-xts-plain64 (header) > partition".
func volumeSummary(v *posturev1.Volume) string {
	var b strings.Builder
	b.WriteString(strings.TrimPrefix(posturev1.MountClass_name[int32(v.GetMountClass())], "MOUNT_CLASS_"))
	b.WriteByte(' ')
	b.WriteString(v.GetFilesystem())
	b.WriteString(": ")
	b.WriteString(string(encryptionOf(v).state))
	b.WriteString(bitLockerNote(v))
	for i, p := range v.GetPaths() {
		b.WriteString([]string{", ", " | "}[min(i, 1)])
		for j, l := range p.GetLayers() {
			if j > 0 {
				b.WriteString(" > ")
			}
			b.WriteString(strings.ToLower(strings.TrimPrefix(posturev1.LayerType_name[int32(l.GetType())], "LAYER_TYPE_")))
			if l.GetCipher() != "" {
				b.WriteByte(' ')
				b.WriteString(l.GetCipher())
			}
		}
		if b.Len() > 4*maxValueRunes {
			break
		}
	}
	return short(b.String())
}

func dateWord(t *timestamppb.Timestamp) string {
	if t == nil {
		return "unknown"
	}
	return t.AsTime().UTC().Format(time.DateOnly)
}

func ternaryWord(t posturev1.Ternary) string {
	switch t {
	case posturev1.Ternary_TERNARY_YES:
		return "yes"
	case posturev1.Ternary_TERNARY_NO:
		return "no"
	}
	return "unknown"
}

// short makes a text from a notebook fit to be shown: one line of printable
// runes, cut where it is too long.
func short(s string) string {
	plain := true
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			plain = false
			break
		}
	}
	if plain && len(s) <= maxValueRunes {
		return strings.TrimSpace(s)
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n++; n > maxValueRunes {
			b.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

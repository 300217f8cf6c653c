package capture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"pfoertner/agent/probe"
)

// redactor reduces the answers of one capture. What is replaced keeps its
// identity within the capture: the same volume is the same "volume-0"
// everywhere, and equal texts stay equal.
type redactor struct {
	volumes, programs, texts pseudonyms
	addresses                addresses
}

// newRedactor gives pseudonyms in the order of the questions, so that they do
// not depend on which probe was faster.
func newRedactor(replies map[question]reply) *redactor {
	r := &redactor{
		volumes:  pseudonyms{prefix: "volume-"},
		programs: pseudonyms{prefix: "program-", suffix: ".exe"},
		texts:    pseudonyms{prefix: "redacted-"},
	}
	questions := slices.Sorted(maps.Keys(replies))
	for _, q := range questions {
		r.addresses.learn(q, replies[q].value)
	}
	return r
}

// pseudonyms are given in the order in which they are first asked for.
type pseudonyms struct {
	prefix, suffix string
	given          map[string]string
}

// of is the pseudonym of a text; the empty text keeps itself.
func (p *pseudonyms) of(text string) string {
	if text == "" {
		return ""
	}
	if p.given == nil {
		p.given = map[string]string{}
	}
	if p.given[text] == "" {
		p.given[text] = fmt.Sprint(p.prefix, len(p.given), p.suffix)
	}
	return p.given[text]
}

// question reduces the question itself: a program's path may lead through a
// home.
func (r *redactor) question(q question) question {
	if q.method() == askProgram {
		return ask(askProgram, r.path(q.argument()))
	}
	return q
}

// problem reduces an error. Its text may hold anything, so only what Windows
// itself says of an error number is kept, and result codes.
func (r *redactor) problem(err error) (text, is string) {
	if err == nil {
		return "", ""
	}
	for _, c := range classes() {
		if errors.Is(err, c.is) {
			is = c.name
			break
		}
	}
	var number syscall.Errno
	switch codes := r.codes(err.Error()); {
	case errors.As(err, &number):
		return number.Error(), is
	case codes != "":
		return codes, is
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time", is
	case is != "":
		return "", is
	}
	return "the reason is not kept in captures", is
}

// codes are the result codes in a text.
func (r *redactor) codes(text string) string {
	return strings.Join(regexp.MustCompile(`\b0x[0-9A-Fa-f]{8}\b`).FindAllString(text, 8), ", ")
}

// reduced is a problem that is text already.
func (r *redactor) reduced(problem string) string {
	if problem == "" {
		return ""
	}
	if codes := r.codes(problem); codes != "" {
		return codes
	}
	return "the reason is not kept in captures"
}

// word keeps a text that has one of the shapes, and names any other "other".
func word(text string, shape string) string {
	if text == "" || regexp.MustCompile(`^(?:`+shape+`)$`).MatchString(text) {
		return text
	}
	return "other"
}

const (
	shapeGUID    = `\{?[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?`
	shapeVersion = `[0-9]+([.,] ?[0-9]+){0,5}`
	// shapeName is what makers call themselves and their products; no mail
	// address, path or account has it.
	shapeName = `[\p{L}\p{N}][\p{L}\p{N} .,&()®™+/'-]{0,99}`
)

func (r *redactor) system(s probe.SystemInfo) probe.SystemInfo {
	s.OS = word(s.OS, "windows")
	s.Platform = word(s.Platform, `Microsoft Windows (10|11|Server [0-9]{4})( (Home|Pro|Education|Enterprise|Standard|Datacenter|IoT|LTSC|Evaluation|Azure|Edition|Core|Multi-Session|Workstations|for|N)){0,5}`)
	s.PlatformFamily = word(s.PlatformFamily, `Standalone Workstation|Workstation|Server|Server \(Domain Controller\)`)
	s.Version = word(s.Version, `[0-9.]{1,20}( Build [0-9.]{1,20})?`)
	s.KernelVersion = word(s.KernelVersion, `[0-9.]{1,20}( Build [0-9.]{1,20})?`)
	s.KernelArch = word(s.KernelArch, "x86_64|aarch64|arm64|amd64|i[3-6]86")
	s.Virtualization = word(s.Virtualization, "hyperv|kvm|qemu|vmware|vbox|xen|parallels")
	s.VirtualRole = word(s.VirtualRole, "guest|host")
	return s
}

// registryValue keeps the texts of values that Windows itself sets, and of any
// other only whether it is set, and to the same as another.
func (r *redactor) registryValue(path string, v probe.RegistryValue) probe.RegistryValue {
	v.Type = word(v.Type, "SZ|EXPAND_SZ|MULTI_SZ|DWORD|QWORD|BINARY")
	if shape, ok := windowsOwn()[strings.ToLower(path)]; ok && word(v.Text, shape) == v.Text {
		v.Lines, v.Bytes = nil, nil
		return v
	}
	v.Text = r.texts.of(v.Text)
	v.Lines = slices.Clone(v.Lines)
	for i, line := range v.Lines {
		v.Lines[i] = r.texts.of(line)
	}
	v.Bytes = make([]byte, len(v.Bytes))
	return v
}

// windowsOwn are the values whose text Windows or its setup wrote, in lower
// case, each with the shape that it has.
func windowsOwn() map[string]string {
	const release = `software\microsoft\windows nt\currentversion\`
	const title = `[A-Za-z0-9][A-Za-z0-9 .]{0,39}`
	return map[string]string{
		release + "currentbuild":       "[0-9]{1,6}",
		release + "currentbuildnumber": "[0-9]{1,6}",
		release + "displayversion":     "[0-9A-Z]{1,8}",
		release + "releaseid":          "[0-9A-Z]{1,8}",
		release + "editionid":          title,
		release + "installationtype":   title,
		release + "productname":        title,
		`software\microsoft\windows defender\signature updates\avsignatureversion`: shapeVersion,
	}
}

func (r *redactor) encryptable(volumes []probe.EncryptableVolume) []probe.EncryptableVolume {
	kept := append([]probe.EncryptableVolume{}, volumes...)
	for i := range kept {
		v := &kept[i]
		v.Volume = r.volumes.of(v.Volume)
		if v.Method != nil {
			m := *v.Method
			m.SelfEncryption = word(m.SelfEncryption, `[0-9]+(\.[0-9]+){1,20}`)
			v.Method = &m
		}
	}
	return kept
}

func (r *redactor) disks(volumes []probe.DiskVolume) []probe.DiskVolume {
	kept := append([]probe.DiskVolume{}, volumes...)
	for i := range kept {
		v := &kept[i]
		v.Volume = r.volumes.of(v.Volume)
		v.FileSystem = word(v.FileSystem, "NTFS|ReFS|FAT|FAT32|exFAT|CDFS|UDF|CSVFS|RAW|DevDrive")
		v.PartitionType = word(v.PartitionType, shapeGUID+`|mbr-[0-9a-f]{2}`)
		v.Problem = r.reduced(v.Problem)
	}
	return kept
}

func (r *redactor) updates(s probe.UpdateSearch) probe.UpdateSearch {
	s.Pending = append([]probe.OfferedUpdate{}, s.Pending...)
	for i := range s.Pending {
		u := &s.Pending[i]
		u.KBs, u.Categories = slices.Clone(u.KBs), slices.Clone(u.Categories)
		for j := range u.KBs {
			u.KBs[j] = word(u.KBs[j], `(KB)?[0-9]{1,12}`)
		}
		for j := range u.Categories {
			u.Categories[j] = word(u.Categories[j], shapeGUID)
		}
		u.ID = word(u.ID, shapeGUID)
		u.Supersedes = slices.Clone(u.Supersedes)
		for j := range u.Supersedes {
			u.Supersedes[j] = word(u.Supersedes[j], shapeGUID)
		}
		u.Severity = word(u.Severity, "Critical|Important|Moderate|Low|Unspecified")
	}
	s.Service.ID = word(s.Service.ID, shapeGUID)
	return s
}

// services keeps a name that was asked for whole, and of one that was asked
// for by its beginning only that: people name their tunnels.
func (r *redactor) services(asked string, services []probe.Service) []probe.Service {
	kept := append([]probe.Service{}, services...)
	for i := range kept {
		s := &kept[i]
		s.Name = strings.TrimSuffix(asked, "*")
		if tunnel := strings.IndexByte(s.Name, '$'); tunnel >= 0 {
			s.Name = s.Name[:tunnel+1]
		}
		s.Program = r.path(s.Program)
	}
	return kept
}

// path keeps the path of a program where only installers write, and replaces
// any other.
func (r *redactor) path(path string) string {
	const installed = `(?i)^("?([a-z]:\\(program files( \(x86\))?|progra~[12]|programdata|windows)|` +
		`%(programfiles|programfiles\(x86\)|programdata|systemroot|windir)%|(\\\?\?\\)?[a-z]:\\windows|\\?systemroot|system32)` +
		`\\[a-z0-9 ._()+~\\-]{1,200})"?$`
	if regexp.MustCompile(installed).MatchString(path) && !strings.Contains(path, "..") {
		return path
	}
	return r.programs.of(path)
}

// program keeps who signed the program, which the collection list names, and
// the product's name where a signature vouches for it.
func (r *redactor) program(p probe.Program) probe.Program {
	p.Publisher = word(p.Publisher, shapeName)
	p.FileVersion = word(p.FileVersion, shapeVersion)
	p.ProductName = word(p.ProductName, shapeName)
	if p.Trust != 0 {
		p.ProductName = ""
	}
	return p
}

func (r *redactor) dialups(connections []probe.Dialup) []probe.Dialup {
	kept := append([]probe.Dialup{}, connections...)
	for i := range kept {
		kept[i].DeviceType = word(kept[i].DeviceType, "(?i:vpn|pppoe|modem|isdn|x25|generic|serial|framerelay|atm|sonet|sw56|irda|parallel|ppp)")
	}
	return kept
}

// variable keeps the one byte of the variables about Secure Boot; of any other
// only its length.
func (r *redactor) variable(name string, content []byte) []byte {
	name, _, _ = strings.Cut(name, " ")
	if len(content) == 1 && slices.Contains([]string{"SecureBoot", "SetupMode", "AuditMode", "DeployedMode"}, name) {
		return content
	}
	return make([]byte, len(content))
}

func (r *redactor) licences(licences []probe.ProductLicence) []probe.ProductLicence {
	kept := slices.Concat([]probe.ProductLicence{}, licences)
	for i := range kept {
		kept[i].ID = word(kept[i].ID, shapeGUID)
	}
	return kept
}

func (r *redactor) antivirus(a probe.SecurityAnswer) probe.SecurityAnswer {
	a.Products = append([]probe.SecurityProduct{}, a.Products...)
	for i := range a.Products {
		a.Products[i].Name = word(a.Products[i].Name, shapeName)
	}
	return a
}

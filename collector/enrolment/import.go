package enrolment

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// PlanImport says what Import would do with an inventory file, field by field,
// and changes nothing. With errors Import would change nothing either.
func (r *Registry) PlanImport(csv []byte) *fleetv1.ImportResponse {
	r.change.Lock()
	defer r.change.Unlock()
	plan, _ := r.plan(csv)
	return plan
}

// Import takes an inventory file, all or nothing. Errors in the file are in the
// response; the error is the store's.
func (r *Registry) Import(ctx context.Context, actor string, csv []byte) (*fleetv1.ImportResponse, error) {
	r.change.Lock()
	defer r.change.Unlock()
	response, devices := r.plan(csv)
	if len(response.Errors) > 0 {
		return response, nil
	}
	records := make([]audit.Record, 0, len(devices)+1)
	added := 0
	for i, change := range response.Changes {
		kind := "asset.changed"
		if change.Kind == kindAdd {
			kind = "asset.added"
			added++
		}
		details := map[string]string{}
		for _, f := range change.Fields {
			details[f.Field] = f.After
			if change.Kind == kindChange {
				details[f.Field] = f.Before + " → " + f.After
			}
		}
		records = append(records, r.record(kind, actor, devices[i], details))
	}
	sum := sha256.Sum256(csv)
	records = append(records, r.record("inventory.imported", actor, nil, map[string]string{
		"added":       strconv.Itoa(added),
		"changed":     strconv.Itoa(len(devices) - added),
		"unchanged":   strconv.Itoa(int(response.Unchanged)),
		"file_sha256": hex.EncodeToString(sum[:]),
	}))
	if err := r.save(ctx, devices, records...); err != nil {
		return nil, fmt.Errorf("importing inventory: %w", err)
	}
	response.Applied = true
	return response, nil
}

const (
	kindAdd    = "add"
	kindChange = "change"
)

// plan compares a file with the inventory. The devices are those of the
// response's changes, in their order.
func (r *Registry) plan(csv []byte) (*fleetv1.ImportResponse, []*fleetv1.Device) {
	var errs lineErrors
	rows := parseCSV(csv, &errs)
	response := &fleetv1.ImportResponse{}
	var devices []*fleetv1.Device
	seen := map[string]uint32{}
	var all []planned
	for _, row := range rows {
		number := row.values[columnAsset]
		if problem := checkAssetNumber(number); problem != "" {
			errs.add(row.line, columnAsset, "%s", problem)
			continue
		}
		if first, twice := seen[number]; twice {
			errs.add(row.line, columnAsset, "asset %s is in line %d already", number, first)
			continue
		}
		seen[number] = row.line
		old, known := r.lookup(r.byAsset, number)
		after := row.apply(old, &errs)
		all = append(all, planned{row.line, after})
		fields := compare(old.GetAsset(), after.GetAsset())
		if known && len(fields) == 0 {
			response.Unchanged++
			continue
		}
		kind := kindChange
		if !known {
			kind = kindAdd
		}
		checkPinned(row.line, old, after, &errs)
		response.Changes = append(response.Changes, &fleetv1.AssetChange{Line: row.line, AssetNumber: number, Kind: kind, Fields: fields})
		devices = append(devices, after)
	}
	r.checkUnique(all, seen, &errs)
	response.Errors = errs.all()
	return response, devices
}

// planned is an asset as it would be after the import.
type planned struct {
	line   uint32
	device *fleetv1.Device
}

// apply returns the device as the row wants it; old is nil for a new asset.
func (row row) apply(old *fleetv1.Device, errs *lineErrors) *fleetv1.Device {
	d := &fleetv1.Device{Asset: &fleetv1.Asset{AssetNumber: row.values[columnAsset], State: expected}}
	if old != nil {
		d = proto.CloneOf(old)
	}
	a := d.Asset
	for column, value := range row.values {
		problem := ""
		switch column {
		case columnVendor:
			a.Vendor = value
		case columnModel:
			a.Model = value
		case columnSerial:
			a.Serial, problem = value, checkSerial(value)
		case columnUnit:
			a.Unit, problem = parseUnit(value)
		case columnGroups:
			a.Groups, problem = parseGroups(value)
		case columnProtection:
			a.KeyProtection, problem = parseProtection(value)
		case columnCertificates:
			a.VpnCertificatesSha256, problem = parseSums(value)
			// What the collector has issued itself is in no file.
			for _, c := range d.GetVpnCertificates() {
				a.VpnCertificatesSha256 = including(a.VpnCertificatesSha256, c.GetSha256())
			}
		case columnEndorsement:
			var sums [][]byte
			sums, problem = parseSums(value)
			// A file never removes: what two operators have approved is not in it.
			for _, sum := range sums {
				a.EndorsementKeysSha256 = including(a.EndorsementKeysSha256, sum)
			}
		}
		if problem != "" {
			errs.add(row.line, column, "%s", problem)
		}
	}
	return d
}

// compare lists the fields that differ, in the order of the columns.
func compare(before, after *fleetv1.Asset) []*fleetv1.FieldChange {
	var changes []*fleetv1.FieldChange
	was, is := fieldTexts(before), fieldTexts(after)
	for _, column := range columns[1:] {
		if was[column] != is[column] {
			changes = append(changes, &fleetv1.FieldChange{Field: column, Before: was[column], After: is[column]})
		}
	}
	return changes
}

func fieldTexts(a *fleetv1.Asset) map[string]string {
	return map[string]string{
		columnVendor:       a.GetVendor(),
		columnModel:        a.GetModel(),
		columnSerial:       a.GetSerial(),
		columnUnit:         a.GetUnit(),
		columnGroups:       strings.Join(a.GetGroups(), " "),
		columnProtection:   protectionName(a.GetKeyProtection()),
		columnCertificates: sumsText(a.GetVpnCertificatesSha256()),
		columnEndorsement:  sumsText(a.GetEndorsementKeysSha256()),
	}
}

func sumsText(sums [][]byte) string {
	texts := make([]string, len(sums))
	for i, sum := range sums {
		texts[i] = hex.EncodeToString(sum)
	}
	slices.Sort(texts)
	return strings.Join(texts, " ")
}

// checkPinned refuses what no file may do, as it takes orders by name: bring a
// retired asset back to life, do without the TPM, or change whose TPM an asset's
// notebook has once it may have one. Old is nil for a new asset.
func checkPinned(line uint32, old, after *fleetv1.Device, errs *lineErrors) {
	was, is := old.GetAsset(), after.GetAsset()
	if was.GetState() == retired {
		errs.add(line, columnAsset, "asset %s is retired and cannot be changed; asset numbers are not used again", was.GetAssetNumber())
		return
	}
	const software = fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE
	if is.GetKeyProtection() == software && was.GetKeyProtection() != software {
		errs.add(line, columnProtection, "an import cannot allow a key that is not in a TPM; two operators do: pfoertner-collector software-key allow %s", is.GetAssetNumber())
	}
	if len(is.GetEndorsementKeysSha256()) == len(was.GetEndorsementKeysSha256()) {
		return
	}
	switch {
	case slices.ContainsFunc(is.GetEndorsementKeysSha256(), func(sum []byte) bool { return blocked(was, sum) && !contains(was.GetEndorsementKeysSha256(), sum) }):
		errs.add(line, columnEndorsement, "this TPM was rejected for asset %s", is.GetAssetNumber())
	case len(was.GetEndorsementKeysSha256()) > 0:
		errs.add(line, columnEndorsement, "asset %s has another TPM already, which an import cannot change; when its mainboard was exchanged, two operators give the order: pfoertner-collector tpm-exchange %s", is.GetAssetNumber(), is.GetAssetNumber())
	case old != nil && (was.GetState() != expected || old.GetId() != ""):
		errs.add(line, columnEndorsement, "asset %s is past its delivery (%s): its TPM enrols with a token, and two operators give the order: pfoertner-collector approve %s", is.GetAssetNumber(), stateName(was.GetState()), is.GetAssetNumber())
	}
}

// checkUnique makes sure that no two assets share a serial number, a VPN
// certificate or an endorsement key once the file is in: neither two of the
// file, nor one of the file and one that only the inventory has.
func (r *Registry) checkUnique(all []planned, inFile map[string]uint32, errs *lineErrors) {
	serials, certificates, tpms := map[string]planned{}, map[string]planned{}, map[string]planned{}
	check := func(p planned, column, what, key string, taken map[string]planned, index map[string]*entry) {
		if first, twice := taken[key]; twice {
			errs.add(p.line, column, "%s is also that of asset %s in line %d", what, first.device.GetAsset().GetAssetNumber(), first.line)
			return
		}
		taken[key] = p
		owner, ok := r.lookup(index, key)
		if number := owner.GetAsset().GetAssetNumber(); ok && number != p.device.GetAsset().GetAssetNumber() && inFile[number] == 0 {
			errs.add(p.line, column, "%s is also that of asset %s (%s)", what, number, stateName(owner.GetAsset().GetState()))
		}
	}
	for _, p := range all {
		a := p.device.GetAsset()
		if key := serialKey(a.GetSerial()); key != "" {
			check(p, columnSerial, "serial number "+a.GetSerial(), key, serials, r.bySerial)
		}
		for _, sum := range a.GetVpnCertificatesSha256() {
			check(p, columnCertificates, "certificate "+hex.EncodeToString(sum), string(sum), certificates, r.byCertificate)
		}
		for _, sum := range endorsements(p.device) {
			check(p, columnEndorsement, "endorsement key "+hex.EncodeToString(sum), string(sum), tpms, r.byEndorsement)
		}
	}
}

// maxName is the longest asset number, group, or level of a unit.
const maxName = 64

func checkAssetNumber(s string) string {
	switch {
	case s == "":
		return "the asset number is missing"
	case len(s) > maxName:
		return fmt.Sprintf("an asset number has at most %d bytes", maxName)
	case strings.ContainsFunc(s, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }):
		return "an asset number has no blanks"
	}
	return ""
}

// placeholders are what firmware says when nobody gave the machine a serial
// number. Taken for one, they would make strangers look alike.
var placeholders = []string{"TO BE FILLED BY O.E.M.", "DEFAULT STRING", "SYSTEM SERIAL NUMBER", "NOT SPECIFIED", "NONE", "N/A", "UNKNOWN", "0", "123456789"}

func checkSerial(s string) string {
	if slices.Contains(placeholders, serialKey(s)) {
		return fmt.Sprintf("%q is a placeholder, not a serial number; leave the field empty", s)
	}
	return ""
}

// parseUnit reads a path such as "Inneres/Polizei/IT".
func parseUnit(s string) (string, string) {
	if s == "" {
		return "", ""
	}
	levels := strings.Split(strings.ToLower(s), "/")
	for i, level := range levels {
		levels[i] = strings.TrimSpace(level)
		if levels[i] == "" || len(levels[i]) > maxName {
			return "", fmt.Sprintf("a unit is a path such as inneres/polizei/it: 1 to %d bytes between the slashes", maxName)
		}
	}
	return strings.Join(levels, "/"), ""
}

// members splits a field that holds several values.
func members(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool { return unicode.IsSpace(c) || strings.ContainsRune(",;|", c) })
}

func parseGroups(s string) ([]string, string) {
	groups := members(strings.ToLower(s))
	for _, g := range groups {
		if len(g) > maxName {
			return nil, fmt.Sprintf("the name of a group has at most %d bytes", maxName)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups), ""
}

var protections = map[string]fleetv1.KeyProtection{
	"":         fleetv1.KeyProtection_KEY_PROTECTION_UNSPECIFIED,
	"tpm":      fleetv1.KeyProtection_KEY_PROTECTION_TPM,
	"software": fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE,
}

func parseProtection(s string) (fleetv1.KeyProtection, string) {
	p, ok := protections[strings.ToLower(s)]
	if !ok {
		names := slices.Sorted(maps.Keys(protections))
		return 0, fmt.Sprintf("%q is not one of: empty, %s", s, strings.Join(names[1:], ", "))
	}
	return p, ""
}

func protectionName(p fleetv1.KeyProtection) string {
	for name, value := range protections {
		if value == p {
			return name
		}
	}
	return ""
}

// parseSums reads several SHA-256.
func parseSums(s string) ([][]byte, string) {
	var sums [][]byte
	for _, text := range members(s) {
		sum, err := ParseFingerprint(text)
		if err != nil {
			return nil, fmt.Sprintf("%q is not a SHA-256: 64 hexadecimal digits", text)
		}
		sums = append(sums, sum)
	}
	slices.SortFunc(sums, func(a, b []byte) int { return cmp.Compare(string(a), string(b)) })
	return slices.CompactFunc(sums, func(a, b []byte) bool { return string(a) == string(b) }), ""
}

// ParseFingerprint reads the SHA-256 of a certificate as tools print it: 64
// hexadecimal digits, in either case, with or without colons. The error wraps
// fs.ErrInvalid.
func ParseFingerprint(text string) ([]byte, error) {
	sum, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("%q is not a SHA-256 (64 hexadecimal digits): %w", text, fs.ErrInvalid)
	}
	return sum, nil
}

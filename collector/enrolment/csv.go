package enrolment

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// MaxImportBytes is the largest inventory file that is taken: far more than
// 100,000 assets need.
const MaxImportBytes = 32 << 20

// maxReportedErrors bounds the list of errors: the rest is counted.
const maxReportedErrors = 100

// The columns of an inventory file. Only asset_number has to be there; what a
// file has no column for stays as it is.
const (
	columnAsset        = "asset_number"
	columnVendor       = "vendor"
	columnModel        = "model"
	columnSerial       = "serial"
	columnUnit         = "unit"
	columnGroups       = "groups"
	columnProtection   = "key_protection"
	columnCertificates = "vpn_certificate_sha256"
	columnEndorsement  = "endorsement_key_sha256"
)

var columns = []string{
	columnAsset, columnVendor, columnModel, columnSerial, columnUnit, columnGroups, columnProtection, columnCertificates,
	columnEndorsement,
}

// row is one asset of an inventory file.
type row struct {
	line   uint32
	values map[string]string // by column; a column that the file lacks is absent
}

// lineErrors collects what is wrong with a file, for people.
type lineErrors struct {
	list []*fleetv1.LineError
	more int
}

func (e *lineErrors) add(line uint32, column, format string, args ...any) {
	if len(e.list) >= maxReportedErrors {
		e.more++
		return
	}
	e.list = append(e.list, &fleetv1.LineError{Line: line, Column: column, Message: fmt.Sprintf(format, args...)})
}

func (e *lineErrors) all() []*fleetv1.LineError {
	slices.SortStableFunc(e.list, func(a, b *fleetv1.LineError) int { return int(a.Line) - int(b.Line) })
	if e.more > 0 {
		e.list = append(e.list, &fleetv1.LineError{Message: fmt.Sprintf("%d more errors are not shown", e.more)})
		e.more = 0
	}
	return e.list
}

// parseCSV reads an inventory file: UTF-8 with or without byte order mark,
// fields separated by ';' or ',', the first line naming the columns in any
// order. Empty lines are skipped. Errors go to errs with line and column.
func parseCSV(text []byte, errs *lineErrors) []row {
	text, ok := checkEncoding(text, errs)
	if !ok {
		return nil
	}
	reader := csv.NewReader(bytes.NewReader(text))
	reader.Comma = separator(text)
	reader.FieldsPerRecord = -1
	header, ok := parseHeader(reader, errs)
	if !ok {
		return nil
	}
	var rows []row
	for {
		record, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return rows
		}
		if err != nil {
			line, problem := syntaxError(err)
			errs.add(line, "", "%s; the rest of the file was not read", problem)
			return rows
		}
		line, _ := reader.FieldPos(0)
		if !slices.ContainsFunc(record, func(v string) bool { return strings.TrimSpace(v) != "" }) {
			continue
		}
		if len(record) != len(header) {
			errs.add(uint32(line), "", "%d fields, the header has %d", len(record), len(header))
			continue
		}
		r := row{line: uint32(line), values: make(map[string]string, len(header))}
		for i, column := range header {
			value := strings.TrimSpace(record[i])
			if problem := checkText(value); problem != "" {
				errs.add(r.line, column, "%s", problem)
			}
			r.values[column] = value
		}
		rows = append(rows, r)
	}
}

func checkEncoding(text []byte, errs *lineErrors) ([]byte, bool) {
	switch {
	case len(text) > MaxImportBytes:
		errs.add(0, "", "the file has %d bytes, at most %d are taken", len(text), MaxImportBytes)
		return nil, false
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}), bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		errs.add(1, "", `the file is UTF-16; save it as "CSV UTF-8" and import it again`)
		return nil, false
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if at := firstInvalid(text); at >= 0 {
		line := 1 + bytes.Count(text[:at], []byte("\n"))
		errs.add(uint32(line), "", `the file is not UTF-8 but, as it looks, Windows-1252: umlauts would be lost; save it as "CSV UTF-8" and import it again`)
		return nil, false
	}
	return text, true
}

// firstInvalid returns where text stops being UTF-8, or -1.
func firstInvalid(text []byte) int {
	if utf8.Valid(text) {
		return -1
	}
	for at := 0; ; {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size <= 1 {
			return at
		}
		at += size
	}
}

// separator is ';' unless the header has more commas.
func separator(text []byte) rune {
	header, _, _ := bytes.Cut(text, []byte("\n"))
	if bytes.Count(header, []byte(",")) > bytes.Count(header, []byte(";")) {
		return ','
	}
	return ';'
}

func parseHeader(reader *csv.Reader, errs *lineErrors) ([]string, bool) {
	record, err := reader.Read()
	if errors.Is(err, io.EOF) {
		errs.add(1, "", "the file is empty; the first line names the columns: %s", strings.Join(columns, ";"))
		return nil, false
	}
	if err != nil {
		line, problem := syntaxError(err)
		errs.add(line, "", "%s", problem)
		return nil, false
	}
	line, _ := reader.FieldPos(0)
	header := make([]string, len(record))
	for i, name := range record {
		header[i] = strings.ToLower(strings.TrimSpace(name))
		switch {
		case !slices.Contains(columns, header[i]):
			errs.add(uint32(line), name, "unknown column; known are %s", strings.Join(columns, ", "))
		case slices.Contains(header[:i], header[i]):
			errs.add(uint32(line), name, "the column is there twice")
		}
	}
	if !slices.Contains(header, columnAsset) {
		errs.add(uint32(line), columnAsset, "the column is missing")
	}
	return header, len(errs.list) == 0
}

func syntaxError(err error) (line uint32, problem string) {
	var parse *csv.ParseError
	if !errors.As(err, &parse) {
		return 0, err.Error()
	}
	switch {
	case errors.Is(parse.Err, csv.ErrQuote):
		return uint32(parse.StartLine), "a field in quotation marks does not end with one right before the separator"
	case errors.Is(parse.Err, csv.ErrBareQuote):
		return uint32(parse.Line), "a quotation mark inside a field that does not begin with one"
	}
	return uint32(parse.Line), parse.Err.Error()
}

const maxCell = 4 << 10

// checkText refuses what would look like one text and be another.
func checkText(s string) string {
	if len(s) > maxCell {
		return fmt.Sprintf("%d bytes of text, at most %d are taken", len(s), maxCell)
	}
	for _, c := range s {
		switch {
		case unicode.IsControl(c):
			return "a control character or line break inside the field"
		case unicode.Is(unicode.Mn, c):
			return "a letter and its accent as two characters; write them as one (Unicode NFC)"
		case unicode.Is(unicode.Cf, c):
			return "an invisible character inside the field"
		}
	}
	return ""
}

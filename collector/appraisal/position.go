package appraisal

import (
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// place finds where in the file the rune at offset of a scalar's value stands:
// line and column, from 1. YAML folds, indents and quotes a text, but drops and
// adds only white space, so the n-th rune that is none is the same in both.
func place(lines []string, n *yaml.Node, offset int) (line, column int) {
	value := []rune(n.Value)
	offset = min(max(offset, 0), len(value))
	before := 0
	for _, r := range value[:offset] {
		if !unicode.IsSpace(r) {
			before++
		}
	}
	atEnd := true
	for _, r := range value[offset:] {
		atEnd = atEnd && unicode.IsSpace(r)
	}
	line = n.Line
	skip := n.Column - 1
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		// The text begins in the line below the indicator.
		line, skip = line+1, 0
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		skip++
	}
	for i := line - 1; i >= 0 && i < len(lines); i++ {
		row := []rune(lines[i])
		for j := min(skip, len(row)); j < len(row); j++ {
			if unicode.IsSpace(row[j]) {
				continue
			}
			escaped := escapes(n, row, j)
			if escaped && strings.ContainsRune("ntr ", row[j+1]) {
				j++ // stands for white space
				continue
			}
			if before == 0 && !atEnd {
				return i + 1, j + 1
			}
			if escaped {
				j++
			}
			before--
			if before == 0 && atEnd {
				return i + 1, j + 2
			}
		}
		skip = 0
	}
	return n.Line, n.Column
}

// escapes says whether the rune at j begins an escape of two runes that stands
// for one.
func escapes(n *yaml.Node, row []rune, j int) bool {
	switch {
	case j+1 >= len(row):
		return false
	case n.Style&yaml.DoubleQuotedStyle != 0:
		return row[j] == '\\'
	case n.Style&yaml.SingleQuotedStyle != 0:
		return row[j] == '\'' && row[j+1] == '\''
	}
	return false
}

package appraisal

import (
	"regexp"
	"strings"
	"testing"
)

func TestCodesHaveNoLookAlikes(t *testing.T) {
	for _, bad := range "0O1ILUS" {
		if strings.ContainsRune(codeAlphabet, bad) {
			t.Errorf("%c is in the alphabet", bad)
		}
	}
	if Code("ab", "c") == Code("a", "bc") {
		t.Error("parts run into each other")
	}
}

func TestCodesAreUnderstoodHoweverTheyAreReadOut(t *testing.T) {
	for said, want := range map[string]string{
		"7K4-QX2": "7K4-QX2", "7k4qx2": "7K4-QX2", " 7k4 – qx2\n": "7K4-QX2", "7.K.4.Q.X.2": "7K4-QX2", "7K4—QX2": "7K4-QX2",
		"usv-5vs": "V5V-5V5",
	} {
		if got, err := ParseCode(said); err != nil || got != want {
			t.Errorf("%q became %q %v, want %q", said, got, err, want)
		}
	}
	for _, said := range []string{"", "7K4-QX", "7K4-QX22", "7K4-QÄ2", "7K4/QX2", "7K4-QX0", "1K4-QX2", "HB-000001"} {
		if got, err := ParseCode(said); err != ErrCode {
			t.Errorf("%q became %q, %v", said, got, err)
		}
	}
}

func FuzzCode(f *testing.F) {
	for _, seed := range []string{"7K4-QX2", "7k4qx2", "oil-oil", "7K4 - QX2", "", "ÄÖÜ-ßſK", "777777777"} {
		f.Add(seed)
	}
	normal := regexp.MustCompile(`^[2-9A-Z]{3}-[2-9A-Z]{3}$`)
	f.Fuzz(func(t *testing.T, said string) {
		made := Code(said)
		if got, err := ParseCode(made); err != nil || got != made {
			t.Fatalf("%q became %q, %v", made, got, err)
		}
		code, err := ParseCode(said)
		if err != nil {
			return
		}
		if !normal.MatchString(code) || strings.ContainsAny(code, "OILUS") {
			t.Fatalf("%q became %q", said, code)
		}
		for _, again := range []string{code, strings.ToLower(code), strings.ReplaceAll(code, "-", " ")} {
			if got, err := ParseCode(again); err != nil || got != code {
				t.Fatalf("%q became %q, then %q", said, code, got)
			}
		}
	})
}

package main

import (
	"fmt"
	"strings"
)

// word is an enum value as people and filters write it: VERDICT_ADMIT is
// "ADMIT", ASSET_STATE_ACTIVE is "ACTIVE".
func word(value fmt.Stringer) string {
	s := value.String()
	for _, prefix := range []string{"VERDICT_", "ASSET_STATE_", "OUTCOME_", "EFFECT_", "KEY_PROTECTION_", "TERNARY_", "PCR_REFERENCE_"} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			return rest
		}
	}
	return s
}

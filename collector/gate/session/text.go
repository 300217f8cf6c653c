package session

import "strings"

// Texts that users read when the collector has none for them. One line each:
// VPN clients show no more.
const (
	unreachableText   = "Kein Zugang: Die Zugangsprüfung ist zurzeit nicht erreichbar. Bitte versuchen Sie es in einigen Minuten erneut."
	noCertificateText = "Kein Zugang: Das VPN hat kein Zertifikat Ihres Geräts erhalten. Bitte wenden Sie sich an Ihre IT-Stelle."
	notAdmittedText   = "Kein Zugang: Diese Verbindung wurde nicht freigegeben. Bitte verbinden Sie sich erneut."
	refusedText       = "Kein Zugang zum Verwaltungsnetz: Ihr Dienst-Notebook erfüllt eine Vorgabe nicht."
)

// maxText is how many bytes a text may have: every VPN client shows as much.
const maxText = 200

// refusalText is what the user reads: the collector's German text, else its
// English one, else our own, always with the code. What is too long loses its
// end, never the code.
func refusalText(de, en, code string) string {
	text := de
	if text == "" {
		text = en
	}
	if text == "" {
		text = refusedText
	}
	text = strings.Join(strings.Fields(text), " ")
	if code == "" || strings.Contains(text, code) && len(text) <= maxText {
		return clip(text, maxText)
	}
	reference := " Vorgangsnummer: " + code
	return clip(text, maxText-len(reference)) + reference
}

// clip cuts text at the last word that fits.
func clip(text string, max int) string {
	if len(text) <= max {
		return text
	}
	const more = " …"
	cut := strings.LastIndexByte(text[:max-len(more)+1], ' ')
	if cut < 0 {
		return ""
	}
	return text[:cut] + more
}

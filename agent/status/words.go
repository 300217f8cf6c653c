package status

import (
	"slices"
	"strings"
	"time"
)

// Words are the texts of one language.
type Words struct {
	pick func(Text) string
	time func(time.Time) string
	day  func(time.Time) string

	admit, quarantine, deny, ended                    block
	refused, expired, untrusted, notEnrolled, pending block
	notConfigured, broken, noTPM, otherProtection     block

	copied, foreignKeys                               string
	noToken, tokenRefused, notReached, wrongAuthority string
	notExpected                                       string

	noneTitle, none                               string
	fingerprint, code, more                       string
	unmet, unknown, warning, since, grace, remedy string
	lastContact, neverReached                     string
	unreachable, silent                           string
	noService                                     string
}

type block struct{ title, text string }

// NoService is what to say when there is no status at all.
func (w *Words) NoService() string { return w.noService }

// German says whether a language tag or locale ("de_DE.UTF-8", "en") asks for
// German. What names no language ("", "C", "POSIX") gets German too, the
// language of the house; every other one English.
func German(locale string) bool {
	name, _, _ := strings.Cut(strings.ToLower(locale), ".")
	name, _, _ = strings.Cut(strings.ReplaceAll(name, "-", "_"), "_")
	return slices.Contains([]string{"de", "", "c", "posix"}, name)
}

// Language returns the words for a language tag or locale.
func Language(locale string) *Words {
	if German(locale) {
		return german()
	}
	return english()
}

func german() *Words {
	return &Words{
		pick: func(t Text) string { return t.De },
		time: func(t time.Time) string { return t.Format("02.01.2006, 15:04 Uhr") },
		day:  func(t time.Time) string { return t.Format("02.01.2006") },

		admit: block{"Zugang zum Verwaltungsnetz", "Ihr Dienst-Notebook ist zugelassen."},
		quarantine: block{"Eingeschränkter Zugang zum Verwaltungsnetz (Quarantäne)",
			"Ihr Dienst-Notebook erreicht zurzeit nur die Stellen, von denen es Aktualisierungen bekommt."},
		deny: block{"Kein Zugang zum Verwaltungsnetz", "Ihr Dienst-Notebook erfüllt die Richtlinie nicht."},
		ended: block{"Eingeschränkter Zugang zum Verwaltungsnetz",
			"Der letzte Nachweis Ihres Dienst-Notebooks galt bis %s. Verbinden Sie das Gerät mit dem Internet und warten Sie einige Minuten."},
		refused: block{"Ihr Dienst-Notebook wird nicht angenommen",
			"Die zentrale Stelle nimmt die Meldungen dieses Geräts nicht an. Bitte wenden Sie sich an Ihre IT-Stelle."},
		expired: block{"Die Aufnahme Ihres Dienst-Notebooks ist abgelaufen",
			"Das Gerät war zu lange nicht verbunden oder seine Uhr geht falsch. Prüfen Sie Datum und Uhrzeit. Hilft das nicht, wenden Sie sich bitte an Ihre IT-Stelle: Sie nimmt das Gerät neu auf."},
		untrusted: block{"Die zentrale Stelle konnte sich nicht ausweisen",
			"Ihr Dienst-Notebook überträgt deshalb nichts. Entweder war es sehr lange nicht verbunden, seine Uhr geht falsch, oder jemand anderes antwortet an Stelle der zentralen Stelle. Prüfen Sie Datum und Uhrzeit. Hilft das nicht, wenden Sie sich bitte an Ihre IT-Stelle: Sie nimmt das Gerät neu auf."},
		notEnrolled: block{"Ihr Dienst-Notebook ist noch nicht aufgenommen",
			"Die Aufnahme ist noch nicht abgeschlossen. Verbinden Sie das Gerät mit dem Internet. Dauert das länger als einen Tag, wenden Sie sich bitte an Ihre IT-Stelle."},
		pending: block{"Die Aufnahme Ihres Dienst-Notebooks wartet auf Freigabe",
			"Ihre IT-Stelle prüft die Aufnahme. Sie müssen nichts tun."},

		notConfigured: block{"Ihr Dienst-Notebook ist noch nicht eingerichtet",
			"Dem Gerät wurde noch nicht mitgeteilt, bei welcher zentralen Stelle es sich melden soll. Bitte wenden Sie sich an Ihre IT-Stelle. Sobald die Angabe vorliegt, arbeitet der Dienst von selbst weiter."},
		broken: block{"Der Dienst auf Ihrem Dienst-Notebook kann nicht arbeiten",
			"Der Dienst pfoertner-agent kann seine eigenen Dateien nicht benutzen. Bitte wenden Sie sich an Ihre IT-Stelle."},
		noTPM: block{"Der Sicherheitschip Ihres Dienst-Notebooks antwortet nicht",
			"Der Schlüssel dieses Geräts liegt im Sicherheitschip (TPM 2.0). Solange dieser nicht antwortet, kann sich das Gerät nicht melden. Es versucht es von selbst wieder. Starten Sie das Gerät neu. Hilft das nicht, wenden Sie sich bitte an Ihre IT-Stelle: Sie prüft, ob der Chip in den Einstellungen der Firmware (UEFI) eingeschaltet ist."},
		otherProtection: block{"Der Schlüssel Ihres Dienst-Notebooks ist anders geschützt als eingestellt",
			"Eingestellt ist, ob der Schlüssel im Sicherheitschip (TPM) oder in einer Datei liegt (device_key). Der vorhandene Schlüssel passt nicht dazu und wird nicht benutzt. Bitte wenden Sie sich an Ihre IT-Stelle: Sie nimmt das Gerät neu auf oder berichtigt die Einstellung."},
		foreignKeys:    "Der Sicherheitschip (TPM) des Geräts kennt den bisherigen Schlüssel nicht. Er wurde zurückgesetzt oder mit der Hauptplatine getauscht, oder die Dateien stammen von einem anderen Gerät. Der alte Schlüssel wird nicht mehr benutzt; die Aufnahme beginnt von selbst neu.",
		notExpected:    "Grund: Die zentrale Stelle erwartet dieses Gerät nicht. Nennen Sie Ihrer IT-Stelle die Seriennummer; sie gibt die Aufnahme frei oder ein Einmalkennwort (Token) aus.",
		copied:         "Auf dem Gerät lag die Aufnahme eines anderen Geräts, zum Beispiel aus einem Abbild. Sie wird nicht benutzt: Jedes Gerät braucht seine eigene.",
		noToken:        "Grund: Das Einmalkennwort für die Aufnahme (Token) fehlt auf dem Gerät.",
		tokenRefused:   "Grund: Die zentrale Stelle hat die Aufnahme abgelehnt. Das Einmalkennwort (Token) ist verbraucht, abgelaufen oder gehört zu einem anderen Gerät.",
		notReached:     "Grund: Die zentrale Stelle ist zurzeit nicht erreichbar.",
		wrongAuthority: "Grund: Die Gegenstelle konnte sich nicht als zentrale Stelle ausweisen.",

		noneTitle:   "Noch keine Entscheidung",
		none:        "Für Ihr Dienst-Notebook liegt noch keine Bewertung vor.",
		fingerprint: "Prüfzahl des Geräts: %s",
		code:        "Hilft das nicht, nennen Sie Ihrer IT-Stelle die Vorgangsnummer %s.",
		more:        "Weitere Gründe: %d. Alle zeigt der Befehl „pfoertner-agent status“.",
		unknown:     "Nicht feststellbar ist, ob diese Regel erfüllt ist: „%s“.",
		unmet:       "Nicht erfüllt ist die Regel „%s“.",
		warning:     "Hinweis: ",
		since:       "Nicht erfüllt seit: %s",
		grace:       "Übergangsfrist bis: %s",
		remedy:      "So beheben Sie es: %s",

		lastContact:  "Letzter Kontakt zur zentralen Stelle: %s",
		neverReached: "Die zentrale Stelle wurde noch nicht erreicht. Verbinden Sie das Gerät mit dem Internet.",
		unreachable:  "Die zentrale Stelle ist zurzeit nicht erreichbar. Das Gerät versucht es von selbst wieder.",
		silent:       "Seitdem hat sich der Dienst pfoertner-agent nicht mehr gemeldet. Starten Sie das Gerät neu. Hilft das nicht, wenden Sie sich bitte an Ihre IT-Stelle.",
		noService:    "Der Dienst pfoertner-agent hat auf diesem Gerät noch nichts gemeldet. Starten Sie das Gerät neu. Hilft das nicht, wenden Sie sich bitte an Ihre IT-Stelle.",
	}
}

func english() *Words {
	return &Words{
		pick: func(t Text) string { return t.En },
		time: func(t time.Time) string { return t.Format("2 January 2006, 15:04") },
		day:  func(t time.Time) string { return t.Format("2 January 2006") },

		admit: block{"Access to the administration's network", "Your service notebook is admitted."},
		quarantine: block{"Limited access to the administration's network (quarantine)",
			"For now your service notebook reaches only the places that it gets updates from."},
		deny: block{"No access to the administration's network", "Your service notebook does not meet the policy."},
		ended: block{"Limited access to the administration's network",
			"The last evidence of your service notebook was valid until %s. Connect it to the internet and wait a few minutes."},
		refused: block{"Your service notebook is not accepted",
			"The collector does not accept reports of this device. Please ask your IT service."},
		expired: block{"The enrolment of your service notebook has expired",
			"The device was not connected for too long, or its clock is wrong. Check date and time. If that does not help, please ask your IT service: it enrols the device again."},
		untrusted: block{"The collector could not prove who it is",
			"So your service notebook sends nothing. Either it was not connected for a very long time, its clock is wrong, or somebody else answers in the collector's place. Check date and time. If that does not help, please ask your IT service: it enrols the device again."},
		notEnrolled: block{"Your service notebook is not enrolled yet",
			"The enrolment is not complete. Connect the device to the internet. If it takes more than a day, please ask your IT service."},
		pending: block{"The enrolment of your service notebook waits for approval",
			"Your IT service is checking it. There is nothing for you to do."},

		notConfigured: block{"Your service notebook is not set up yet",
			"The device was not told yet which collector to report to. Please ask your IT service. As soon as it is named, the service goes on by itself."},
		broken: block{"The service on your service notebook cannot work",
			"The service pfoertner-agent cannot use its own files. Please ask your IT service."},
		noTPM: block{"The security chip of your service notebook does not answer",
			"The key of this device is in its security chip (TPM 2.0). As long as that does not answer, the device cannot report. It tries again by itself. Restart the device. If that does not help, please ask your IT service: it checks whether the chip is switched on in the settings of the firmware (UEFI)."},
		otherProtection: block{"The key of your service notebook is protected otherwise than configured",
			"A setting says whether the key is in the security chip (TPM) or in a file (device_key). The key that is there does not match it and is not used. Please ask your IT service: it enrols the device again or corrects the setting."},
		foreignKeys:    "The security chip (TPM) of the device does not know the key it had. It was cleared or replaced with the mainboard, or the files are from another device. The old key is not used any more; the enrolment begins again by itself.",
		notExpected:    "Reason: the collector does not expect this device. Tell your IT service its serial number; it opens the enrolment or hands out a one-time token.",
		copied:         "The device carried the enrolment of another one, for example from an image. It is not used: every device needs its own.",
		noToken:        "Reason: the one-time token for the enrolment is missing on the device.",
		tokenRefused:   "Reason: the collector has refused the enrolment. The one-time token is used up, has expired or belongs to another device.",
		notReached:     "Reason: the collector cannot be reached at the moment.",
		wrongAuthority: "Reason: whoever answered could not prove to be the collector.",

		noneTitle:   "No decision yet",
		none:        "Your service notebook has not been appraised yet.",
		fingerprint: "Fingerprint of the device: %s",
		code:        "If that does not help, give your IT service the code %s.",
		more:        "Further reasons: %d. The command “pfoertner-agent status” shows all of them.",
		unknown:     "Whether this rule is met could not be told: “%s”.",
		unmet:       "This rule is not met: “%s”.",
		warning:     "Note: ",
		since:       "Failing since: %s",
		grace:       "Grace period until: %s",
		remedy:      "What to do: %s",

		lastContact:  "Last contact with the collector: %s",
		neverReached: "The collector has not been reached yet. Connect the device to the internet.",
		unreachable:  "The collector cannot be reached at the moment. The device keeps trying by itself.",
		silent:       "The service pfoertner-agent has not reported since. Restart the device. If that does not help, please ask your IT service.",
		noService:    "The service pfoertner-agent has not reported anything on this device yet. Restart the device. If that does not help, please ask your IT service.",
	}
}

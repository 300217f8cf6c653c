package appraisal

import (
	"cmp"
	"encoding/hex"
	"errors"
	"reflect"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"google.golang.org/protobuf/proto"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// undecidable is the error of a function that cannot tell: the rule becomes
// UNKNOWN and shows these words.
type undecidable struct{ text *posturev1.LocalText }

func (u undecidable) Error() string { return u.text.GetEn() }

func cannotTell(de, en string) error {
	return undecidable{&posturev1.LocalText{De: de, En: en}}
}

// reasonOf is why an evaluation broke off, in words.
func reasonOf(err error) *posturev1.LocalText {
	if known, ok := errors.AsType[undecidable](err); ok {
		return known.text
	}
	return textBrokeOff(err)
}

// value adapts a function's outcome to CEL.
func value[T any](v T, err error, adapt func(T) ref.Val) ref.Val {
	if err != nil {
		return types.WrapErr(err)
	}
	return adapt(v)
}

func boolean(v bool) ref.Val                   { return types.Bool(v) }
func whole(v int) ref.Val                      { return types.Int(v) }
func text(v string) ref.Val                    { return types.String(v) }
func moment(v time.Time) ref.Val               { return types.Timestamp{Time: v} }
func timeOf(v ref.Val) time.Time               { t, _ := v.(types.Timestamp); return t.Time }
func spanOf(v ref.Val) time.Duration           { d, _ := v.(types.Duration); return d.Duration }
func numberOf(v ref.Val) int64                 { n, _ := v.(types.Int); return int64(n) }
func stringOf(v ref.Val) string                { s, _ := v.(types.String); return string(s) }
func scopeOf(v ref.Val) posturev1.RoutingScope { return posturev1.RoutingScope(numberOf(v)) }

// numbersOf reads a list of whole numbers.
func numbersOf(v ref.Val) []int64 {
	list, err := v.ConvertToNative(reflect.TypeFor[[]int64]())
	numbers, _ := list.([]int64)
	if err != nil {
		return nil
	}
	return numbers
}

// textsOf reads a list of texts.
func textsOf(v ref.Val) []string {
	list, err := v.ConvertToNative(reflect.TypeFor[[]string]())
	texts, _ := list.([]string)
	if err != nil {
		return nil
	}
	return texts
}

// messageOf returns the message behind a CEL value. A message that is not set
// has no value of its type: then nothing was reported.
func messageOf[M proto.Message](v ref.Val) (M, error) {
	m, ok := v.Value().(M)
	if !ok {
		return m, cannotTell("Ein Teil des Nachweises, den die Regel braucht, wurde nicht gemeldet.",
			"A part of the evidence that the rule needs was not reported.")
	}
	return m, nil
}

// of adapts a function of one message.
func of[M proto.Message, T any](fn func(M) (T, error), adapt func(T) ref.Val) cel.OverloadOpt {
	return cel.UnaryBinding(func(v ref.Val) ref.Val {
		m, err := messageOf[M](v)
		if err != nil {
			return types.WrapErr(err)
		}
		out, err := fn(m)
		return value(out, err, adapt)
	})
}

// of2 adapts a function of a message and one further argument.
func of2[M proto.Message, A, T any](fn func(M, A) (T, error), arg func(ref.Val) A, adapt func(T) ref.Val) cel.OverloadOpt {
	return cel.BinaryBinding(func(v, a ref.Val) ref.Val {
		m, err := messageOf[M](v)
		if err != nil {
			return types.WrapErr(err)
		}
		out, err := fn(m, arg(a))
		return value(out, err, adapt)
	})
}

// of3 adapts a function of a message and two further arguments.
func of3[M proto.Message, A, B, T any](fn func(M, A, B) (T, error), first func(ref.Val) A, second func(ref.Val) B, adapt func(T) ref.Val) cel.OverloadOpt {
	return cel.FunctionBinding(func(args ...ref.Val) ref.Val {
		m, err := messageOf[M](args[0])
		if err != nil {
			return types.WrapErr(err)
		}
		out, err := fn(m, first(args[1]), second(args[2]))
		return value(out, err, adapt)
	})
}

// functions are what rules can say beside CEL's own words. docs/policy.md
// describes each.
func functions(adapter types.Adapter) []cel.EnvOption {
	var (
		volumes  = object(&posturev1.Volumes{})
		volume   = object(&posturev1.Volume{})
		patch    = object(&posturev1.Patch{})
		update   = object(&posturev1.PendingUpdate{})
		feed     = object(&posturev1.Feed{})
		client   = object(&posturev1.VpnClient{})
		platform = object(&posturev1.Platform{})
	)
	list := func(vs []*posturev1.Volume) ref.Val {
		elements := make([]ref.Val, len(vs))
		for i, v := range vs {
			elements[i] = adapter.NativeToValue(v)
		}
		return types.NewRefValList(adapter, elements)
	}
	member := func(name, id string, args []*cel.Type, result *cel.Type, binding cel.OverloadOpt) cel.EnvOption {
		return cel.Function(name, cel.MemberOverload(id, args, result, binding))
	}
	global := func(name, id string, args []*cel.Type, result *cel.Type, binding cel.OverloadOpt) cel.EnvOption {
		return cel.Function(name, cel.Overload(id, args, result, binding))
	}
	sig := func(args ...*cel.Type) []*cel.Type { return args }
	return []cel.EnvOption{
		global("yes", "yes_ternary", sig(cel.IntType), cel.BoolType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			is, err := yes(posturev1.Ternary(numberOf(v)))
			return value(is, err, boolean)
		})),
		global("no", "no_ternary", sig(cel.IntType), cel.BoolType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			is, err := yes(posturev1.Ternary(numberOf(v)))
			return value(!is, err, boolean)
		})),
		global("days", "days_int", sig(cel.IntType), cel.DurationType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			d, err := days(numberOf(v))
			return value(d, err, func(d time.Duration) ref.Val { return types.Duration{Duration: d} })
		})),

		member("fixed", "volume_fixed", sig(volume), cel.BoolType, of(func(v *posturev1.Volume) (bool, error) { return isFixed(v), nil }, boolean)),
		member("fixed", "volumes_fixed", sig(volumes), cel.ListType(volume), of(fixedVolumes, list)),
		member("encrypted", "volume_encrypted", sig(volume), cel.BoolType, of(isEncrypted, boolean)),
		global("encryption_state", "encryption_state_volume", sig(volume), cel.StringType,
			of(func(v *posturev1.Volume) (string, error) { return string(encryptionOf(v).state), nil }, text)),
		member("weakest_protector", "volume_weakest_protector", sig(volume), cel.StringType, of(weakestProtector, text)),
		member("unencrypted", "volumes_unencrypted", sig(volumes, cel.StringType), cel.StringType, of2(unencrypted, stringOf, text)),

		global("days_pending", "days_pending_update", sig(update, cel.TimestampType), cel.IntType, of2(daysPending, timeOf, whole)),
		member("days_pending", "patch_days_pending", sig(patch, cel.TimestampType), cel.IntType, of2(longestPending, timeOf, whole)),
		global("oldest_first_seen", "oldest_first_seen_patch", sig(patch), cel.TimestampType, of(oldestFirstSeen, moment)),
		global("newest_first_seen", "newest_first_seen_patch", sig(patch), cel.TimestampType, of(newestFirstSeen, moment)),
		member("security_feeds_fresh", "patch_security_feeds_fresh", sig(patch, cel.TimestampType, cel.DurationType), cel.BoolType,
			of3(securityFeedsFresh, timeOf, spanOf, boolean)),
		member("fresh", "feed_fresh", sig(feed, cel.TimestampType, cel.DurationType), cel.BoolType,
			of3(feedFresh, timeOf, spanOf, boolean)),

		member("searched_within", "patch_searched_within", sig(patch, cel.TimestampType, cel.DurationType), cel.BoolType,
			of3(searchedWithin, timeOf, spanOf, boolean)),
		global("update_source", "update_source_patch", sig(patch), cel.StringType, of(updateSource, text)),
		member("exposure_days", "platform_exposure_days", sig(platform, referenceType(), cel.TimestampType), cel.IntType,
			of3(exposureDays, referencesOf, timeOf, whole)),
		member("content_age_days", "platform_content_age_days", sig(platform, referenceType(), cel.TimestampType), cel.IntType,
			of3(contentAge, referencesOf, timeOf, whole)),
		member("patch_level", "platform_patch_level", sig(platform, referenceType(), cel.TimestampType, cel.StringType), cel.StringType,
			cel.FunctionBinding(func(args ...ref.Val) ref.Val {
				p, err := messageOf[*posturev1.Platform](args[0])
				if err != nil {
					return types.WrapErr(err)
				}
				place, err := patchPlace(p, referencesOf(args[1]), timeOf(args[2]), stringOf(args[3]))
				return value(place, err, text)
			})),
		member("days_behind_ring", "platform_days_behind_ring", sig(platform, referenceType(), cel.ListType(cel.StringType), cel.TimestampType), cel.IntType,
			cel.FunctionBinding(func(args ...ref.Val) ref.Val {
				p, err := messageOf[*posturev1.Platform](args[0])
				if err != nil {
					return types.WrapErr(err)
				}
				n, err := ringDays(p, referencesOf(args[1]), textsOf(args[2]), timeOf(args[3]))
				return value(n, err, whole)
			})),
		member("has_ring", "reference_has_ring", sig(referenceType()), cel.BoolType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			return types.Bool(len(referencesOf(v).windowsTable().ring) > 0)
		})),

		member("secure_boot_on", "attestation_secure_boot_on", sig(object(&posturev1.Attestation{})), cel.BoolType, of(secureBootOn, boolean)),
		member("rejected", "attestation_rejected", sig(object(&posturev1.Attestation{})), cel.BoolType,
			of(func(a *posturev1.Attestation) (bool, error) {
				return anyPCR(a, posturev1.PcrReference_PCR_REFERENCE_REJECTED), nil
			}, boolean)),
		member("approved", "attestation_approved", sig(object(&posturev1.Attestation{})), cel.BoolType,
			of(func(a *posturev1.Attestation) (bool, error) {
				return anyPCR(a, posturev1.PcrReference_PCR_REFERENCE_APPROVED), nil
			}, boolean)),
		member("approved", "attestation_approved_pcrs", sig(object(&posturev1.Attestation{}), cel.ListType(cel.IntType)), cel.BoolType,
			of2(approved, numbersOf, boolean)),
		global("hex", "hex_bytes", sig(cel.BytesType), cel.StringType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			b, ok := v.(types.Bytes)
			if !ok {
				return types.MaybeNoSuchOverloadErr(v)
			}
			return types.String(hex.EncodeToString(b))
		})),

		member("protects", "firewall_protects", sig(object(&posturev1.Firewall{})), cel.BoolType, of(firewallProtects, boolean)),

		global("full_tunnel", "full_tunnel_scope", sig(cel.IntType), cel.BoolType, cel.UnaryBinding(func(v ref.Val) ref.Val {
			full, err := fullTunnel(scopeOf(v))
			return value(full, err, boolean)
		})),
		member("current", "client_current", sig(client, referenceType()), cel.BoolType, of2(clientCurrent, referencesOf, boolean)),
		global("version_at_least", "version_at_least_string", sig(cel.StringType, cel.StringType), cel.BoolType,
			cel.BinaryBinding(func(a, b ref.Val) ref.Val {
				atLeast, err := versionAtLeast(stringOf(a), stringOf(b))
				return value(atLeast, err, boolean)
			})),

		global("end_of_support", "end_of_support_platform", sig(platform, referenceType()), cel.TimestampType, of2(endOfSupport, referencesOf, moment)),
		global("supported", "supported_platform", sig(platform, referenceType(), cel.TimestampType), cel.BoolType,
			of3(supported, referencesOf, timeOf, boolean)),
	}
}

// yes reads a fact that may be unknown.
func yes(t posturev1.Ternary) (bool, error) {
	switch t {
	case posturev1.Ternary_TERNARY_YES:
		return true, nil
	case posturev1.Ternary_TERNARY_NO:
		return false, nil
	}
	return false, cannotTell("Ein Messwert, den die Regel braucht, ist nicht feststellbar.",
		"A fact that the rule needs is unknown.")
}

// firewallProtects says whether a firewall rejects foreign connections. Of
// several engines one is enough; of Windows' profiles every one that is in force
// has to.
func firewallProtects(f *posturev1.Firewall) (bool, error) {
	protects := false
	var unknown, profileUnknown error
	for _, e := range f.GetEngines() {
		loaded, errLoaded := yes(e.GetRulesLoaded())
		drops, errDrops := yes(e.GetInboundDefaultDrop())
		err := cmp.Or(errLoaded, errDrops)
		switch open := errLoaded == nil && !loaded || errDrops == nil && !drops; {
		case open && e.GetProfile() != "":
			return false, nil
		case open:
		case err != nil && e.GetProfile() != "":
			profileUnknown = err
		case err != nil:
			unknown = err
		default:
			protects = true
		}
	}
	switch {
	case profileUnknown != nil:
		return false, profileUnknown
	case protects:
		return true, nil
	}
	return false, unknown
}

const day = 24 * time.Hour

func days(n int64) (time.Duration, error) {
	if n < 0 || n > 36500 {
		return 0, errors.New("days: 0 to 36,500 are taken")
	}
	return time.Duration(n) * day, nil
}

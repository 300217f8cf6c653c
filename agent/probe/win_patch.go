package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// collectWindows reads what Windows Update knows. What is in the registry is
// read each time; the search for pending updates is expensive, and its answer
// is kept while nothing suggests that it has changed.
func (p *patch) collectWindows(ctx context.Context, h Host, out *posturev1.Patch) error {
	w := h.Windows
	out.Reading.Source = "Windows Update, registry"
	out.PackageSystem = "windows-update"
	update := &posturev1.WindowsUpdate{}
	out.WindowsUpdate = update

	policy, errPolicy := readUpdatePolicy(w.Registry)
	if errPolicy == nil {
		update.Source = policy.source()
		out.Contradictions = append(out.Contradictions, policy.contradictions()...)
	}
	strong, errStrong := strongRestartSigns(w.Registry)
	weak, errWeak := weakRestartSigns(w.Registry)

	state := searchState{policy: policy, restart: strings.Join(strong, ","), ubr: installedRevision(w), started: startOf(ctx, h)}
	answer, err := p.search.current(ctx, w.Updates, state, h.Now())
	if err == nil {
		err = searchProblem(answer)
	}
	update.Reading = partReading("Windows Update Agent", h.Now(), err)
	if answer != nil {
		update.LastSearchAt = moment(answer.LastSearch)
		update.LastInstallationAt = moment(answer.LastInstallation)
		out.LastInstalledAt = moment(answer.LastInstallation)
		pending := securityUpdates(answer.Pending)
		if err == nil {
			// A failed search offers nothing: that must not end a sighting.
			update.Reading.Reason = p.ages.dateOffered(pending, answer, p.search.state.ubr, h.Now())
		}
		out.PendingSecurity = uint32(len(pending))
		out.Pending = slices.Clip(pending[:min(len(pending), posture.MaxListedUpdates)])
		if errPolicy == nil {
			out.Contradictions = append(out.Contradictions, policy.against(answer.Service)...)
		}
	}
	out.RebootPending = restartPending(strong, weak, errStrong, answer)
	if c := restartContradiction(strong, answer); c != nil {
		out.Contradictions = append(out.Contradictions, c)
	}
	return errors.Join(errPolicy, errStrong, errWeak)
}

// searchProblem is why the answer of a search does not tell what is pending;
// nil when it does. An empty list is no proof by itself: Windows answers with
// one after a failure and before its first scan too (osquery#7805,
// fleet#19057).
func searchProblem(a *UpdateSearch) error {
	switch {
	case a.Result != 0:
		return fmt.Errorf("the search ended with 0x%08X", a.Result)
	case a.Code != 2: // orcSucceeded
		return fmt.Errorf("the search ended with result code %d", a.Code)
	case a.LastSearch.IsZero():
		return errors.New("Windows has never looked for updates with success")
	case a.Pending == nil:
		return errors.New("the search came back without a list")
	}
	return nil
}

// Categories of updates (IUpdate.Categories, IDs of Microsoft's classifications).
const (
	securityUpdateCategory = "0fa1201d-4330-4fa8-8ae9-b877473b6441"
	criticalUpdateCategory = "e6cf1350-c01b-414d-a61f-263d14d133b4"
	// Definition updates of the antivirus come several times a day; its own
	// section tells how old they are.
	definitionUpdateCategory = "e0789628-ce08-4437-be74-2495b842f43b"
)

// securityUpdates are the offered updates that close holes.
func securityUpdates(offered []OfferedUpdate) []*posturev1.PendingUpdate {
	var list []*posturev1.PendingUpdate
	for _, u := range offered {
		origin := u.closesHoles()
		if origin == "" {
			continue
		}
		if u.Severity == "Unspecified" {
			u.Severity = ""
		}
		list = append(list, &posturev1.PendingUpdate{
			Package: knowledgeBase(u.KBs), Severity: u.Severity, Origin: origin, ReleasedAt: moment(u.Changed),
		})
	}
	slices.SortStableFunc(list, func(a, b *posturev1.PendingUpdate) int {
		return cmp.Or(strings.Compare(a.Package, b.Package), a.ReleasedAt.AsTime().Compare(b.ReleasedAt.AsTime()))
	})
	return list
}

// closesHoles names why an update is one that closes holes; empty when it is
// none. It is of the categories for that, or of any with a severity (MSRC),
// which update rollups can have.
func (u OfferedUpdate) closesHoles() string {
	switch {
	case slices.Contains(u.Categories, definitionUpdateCategory):
		return ""
	case slices.Contains(u.Categories, securityUpdateCategory):
		return "Security Updates"
	case slices.Contains(u.Categories, criticalUpdateCategory):
		return "Critical Updates"
	case u.Severity != "" && u.Severity != "Unspecified":
		return "other updates with a severity"
	}
	return ""
}

// knowledgeBase names an update as people look it up.
func knowledgeBase(articles []string) string {
	if len(articles) == 0 {
		return "without KB number"
	}
	names := make([]string, len(articles))
	for i, a := range articles {
		names[i] = "KB" + strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(a)), "KB")
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// moment is absent for a time that never was.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

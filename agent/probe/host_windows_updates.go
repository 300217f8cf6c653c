//go:build windows

package probe

import (
	"context"
	"errors"
	"strings"

	"github.com/go-ole/go-ole"
)

// updateCriteria are those of IUpdateSearcher.Search: what is offered, not
// installed and not hidden by an administrator.
const updateCriteria = "IsInstalled=0 and IsHidden=0"

// maxSuperseded is how many superseded updates are read in one search: under
// 1 MB of the answer. Cumulative updates of Windows list a few hundred each.
const maxSuperseded = 20000

// readUpdates asks the Windows Update Agent (wuapi.h) by its automation
// interfaces. It asks no server: Online=false reads what the last scan of
// Windows itself left behind.
func readUpdates(context.Context) (UpdateSearch, error) {
	return inCOM(func() (UpdateSearch, error) {
		var answer UpdateSearch
		if err := readUpdateTimes(&answer); err != nil {
			return answer, err
		}
		// Which service was asked is only held against the policy: without an
		// answer there is nothing to hold against it.
		if err := readUpdateService(&answer.Service); err != nil {
			answer.Service = SearchedService{}
		}
		answer.Restart = readRestart()
		session, err := newObject("Microsoft.Update.Session")
		if err != nil {
			return answer, err
		}
		searcher, err := asObject(session.invoke("CreateUpdateSearcher"))
		if err != nil {
			return answer, err
		}
		if err := searcher.put("Online", false); err != nil {
			return answer, err
		}
		return answer, search(searcher, &answer)
	})
}

// search runs IUpdateSearcher.Search. That it failed is an answer, with its
// HRESULT.
func search(searcher object, answer *UpdateSearch) error {
	result, err := asObject(searcher.invoke("Search", updateCriteria))
	var failed *comError
	if errors.As(err, &failed) {
		answer.Result = failed.result
		return nil
	}
	if err != nil {
		return err
	}
	if answer.Code, err = result.number("ResultCode"); err != nil {
		return err
	}
	updates, err := asObject(result.get("Updates"))
	if err != nil {
		return err
	}
	answer.Pending = []OfferedUpdate{}
	superseded := int32(maxSuperseded)
	return updates.each(func(item *ole.VARIANT) error {
		o, err := asObject(item, nil)
		if err != nil {
			return err
		}
		update, err := readUpdate(o)
		readSupersedence(o, &update, superseded)
		superseded -= int32(len(update.Supersedes))
		answer.Pending = append(answer.Pending, update)
		return err
	})
}

// readUpdate takes what is needed of an IUpdate and IUpdate2; no titles, which
// are in the language of the system.
func readUpdate(o object) (u OfferedUpdate, err error) {
	kbs, err := asObject(o.get("KBArticleIDs"))
	if err != nil {
		return u, err
	}
	u.KBs, u.Categories = []string{}, []string{}
	err = kbs.each(func(item *ole.VARIANT) error {
		u.KBs = append(u.KBs, item.ToString())
		return nil
	})
	if err != nil {
		return u, err
	}
	categories, err := asObject(o.get("Categories"))
	if err != nil {
		return u, err
	}
	err = categories.each(func(item *ole.VARIANT) error {
		category, err := asObject(item, nil)
		if err != nil {
			return err
		}
		id, err := category.text("CategoryID")
		u.Categories = append(u.Categories, strings.ToLower(id))
		return err
	})
	if err != nil {
		return u, err
	}
	var errSeverity, errChanged, errDownloaded, errReboot error
	u.Severity, errSeverity = o.text("MsrcSeverity")
	u.Changed, errChanged = o.time("LastDeploymentChangeTime")
	u.Downloaded, errDownloaded = o.flag("IsDownloaded")
	u.Reboot, errReboot = o.flag("RebootRequired")
	return u, errors.Join(errSeverity, errChanged, errDownloaded, errReboot)
}

// readSupersedence reads IUpdate.Identity and, of an update whose age counts,
// SupersededUpdateIDs up to a limit. That they cannot be read does not hide the
// update.
func readSupersedence(o object, u *OfferedUpdate, limit int32) {
	if identity, err := asObject(o.get("Identity")); err == nil {
		id, _ := identity.text("UpdateID")
		u.ID = updateID(id)
	}
	if u.closesHoles() == "" {
		return
	}
	superseded, err := asObject(o.get("SupersededUpdateIDs"))
	if err != nil {
		u.SupersedesMore = true
		return
	}
	count, err := superseded.number("Count")
	if err != nil {
		count = -1
	}
	u.Supersedes, u.SupersedesMore = supersededIDs(count, limit, func(i int32) (string, error) {
		v, err := superseded.get("Item", i)
		if err != nil {
			return "", err
		}
		return v.ToString(), nil
	})
}

// readUpdateTimes reads IAutomaticUpdates2.Results. Searches of other programs
// do not change these times, as the documentation says.
func readUpdateTimes(answer *UpdateSearch) error {
	automatic, err := newObject("Microsoft.Update.AutoUpdate")
	if err != nil {
		return err
	}
	results, err := asObject(automatic.get("Results"))
	if err != nil {
		return err
	}
	var errSearch, errInstallation error
	answer.LastSearch, errSearch = results.time("LastSearchSuccessDate")
	answer.LastInstallation, errInstallation = results.time("LastInstallationSuccessDate")
	return errors.Join(errSearch, errInstallation)
}

// readUpdateService finds the service that a search with the default selection
// asks: the one that is registered with Automatic Updates
// (IUpdateService2.IsDefaultAUService).
func readUpdateService(s *SearchedService) error {
	manager, err := newObject("Microsoft.Update.ServiceManager")
	if err != nil {
		return err
	}
	services, err := asObject(manager.get("Services"))
	if err != nil {
		return err
	}
	return services.each(func(item *ole.VARIANT) error {
		service, err := asObject(item, nil)
		if err != nil {
			return err
		}
		if chosen, err := service.flag("IsDefaultAUService"); err != nil || !chosen {
			return err
		}
		managed, err := service.flag("IsManaged")
		if err != nil {
			return err
		}
		id, err := service.text("ServiceID")
		*s = SearchedService{ID: strings.ToLower(id), ServerSelection: serverSelection(id, managed)}
		return err
	})
}

// readRestart asks Microsoft.Update.SystemInfo.
func readRestart() *RestartRequired {
	system, err := newObject("Microsoft.Update.SystemInfo")
	if err != nil {
		return &RestartRequired{Result: resultOf(err)}
	}
	required, err := system.flag("RebootRequired")
	return &RestartRequired{Result: resultOf(err), Required: required}
}

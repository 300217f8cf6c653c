//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// readLicences asks WMI for SoftwareLicensingProduct, for the activation
// identifiers of Extended Security Updates and two properties alone.
func readLicences(context.Context) ([]ProductLicence, error) {
	return inCOM(func() ([]ProductLicence, error) {
		service, err := connectWMI(`ROOT\CIMV2`)
		if err != nil {
			return nil, err
		}
		instances, err := asObject(service.invoke("ExecQuery", licenceQuery()))
		if err != nil {
			return nil, fmt.Errorf("SoftwareLicensingProduct: %w", err)
		}
		licences := []ProductLicence{}
		err = instances.enumerate(func(o object) error {
			w := wmiInstance{o}
			id, errID := w.property("ID")
			status, errStatus := wmiNumber(w, "LicenseStatus")
			licences = append(licences, ProductLicence{ID: strings.ToLower(fmt.Sprint(id)), Status: status})
			return errors.Join(errID, errStatus)
		})
		if err != nil {
			return nil, fmt.Errorf("SoftwareLicensingProduct: %w", err)
		}
		return licences, nil
	})
}

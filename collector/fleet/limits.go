package fleet

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"pfoertner/internal/posture"
	"pfoertner/internal/signed"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Limits of requests, where they are not those of package posture.
const (
	// maxCSV is the largest inventory file: some 100,000 assets.
	maxCSV = 16 << 20
	// maxPolicy is the largest policy file.
	maxPolicy = 1 << 20
	// maxAuthorities is the largest file of TPM authorities: some hundred.
	maxAuthorities = 4 << 20
	// maxRequest is the largest request as gRPC takes it.
	maxRequest = maxCSV + posture.MaxMessageBytes
	// maxPage is how many devices or events one answer holds at most.
	maxPage = 1000
	// defaultPage is how many it holds when the request does not say.
	defaultPage = 100
)

// checkLimits is posture.CheckLimits for requests; files may be longer than
// what a notebook sends.
func checkLimits(m proto.Message) error {
	switch req := m.(type) {
	case *fleetv1.ImportRequest:
		if err := checkFile("CSV file", req.GetCsv(), maxCSV); err != nil {
			return err
		}
		m = &fleetv1.ImportRequest{DryRun: req.GetDryRun()}
	case *fleetv1.CheckRequest:
		return checkFile("policy file", req.GetYaml(), maxPolicy)
	case *fleetv1.ApplyRequest:
		if err := checkFile("policy file", req.GetYaml(), maxPolicy); err != nil {
			return err
		}
		m = &fleetv1.ApplyRequest{Comment: req.GetComment()}
	case *fleetv1.AddAuthoritiesRequest:
		if err := checkFile("file of certificates", req.GetCertificates(), maxAuthorities); err != nil {
			return err
		}
		m = &fleetv1.AddAuthoritiesRequest{DryRun: req.GetDryRun()}
	case *fleetv1.ImportReferencesRequest:
		if err := checkFile("signed file", req.GetSignedFile(), signed.MaxFile); err != nil {
			return err
		}
		m = &fleetv1.ImportReferencesRequest{Comment: req.GetComment(), AllowOlder: req.GetAllowOlder()}
	}
	return posture.CheckLimits(m)
}

func checkFile(what string, content []byte, most int) error {
	switch n := len(content); {
	case n == 0:
		return fmt.Errorf("%s is empty", what)
	case n > most:
		return fmt.Errorf("%s has %d bytes: at most %d are taken", what, n, most)
	}
	return nil
}

// pageLimit turns a requested number of entries into one that is kept to.
func pageLimit(requested uint32) (int, error) {
	switch {
	case requested == 0:
		return defaultPage, nil
	case requested > maxPage:
		return 0, fmt.Errorf("%d entries asked for: at most %d are given at a time", requested, maxPage)
	}
	return int(requested), nil
}

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"pfoertner/collector/authority"
	"pfoertner/internal/mtls"
)

// Names inside the state directory.
const (
	keysDir      = "pki"
	databaseFile = "pfoertner.db"
)

// newInit makes a collector out of an empty state directory.
func newInit(out io.Writer) *cobra.Command {
	var configFile, operator, operatorDir string
	var names []string
	cmd := &cobra.Command{
		Use:   "init --name HOST --operator-name NAME",
		Short: "Make the keys of a new collector and its first operator",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(configFile)
			if err != nil {
				return err
			}
			dns, addresses := splitNames(names)
			keys := filepath.Join(c.State, keysDir)
			a, err := authority.Create(keys, authority.Options{DNSNames: dns, Addresses: addresses})
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s already holds a collector's keys; nothing was changed", keys)
			}
			if err != nil {
				return err
			}
			err = recording(cmd.Context(), c, func(record authority.Recorder) error {
				a.RecordTo(record)
				return a.WriteOperator(operatorDir, operator)
			})
			if err != nil {
				return fmt.Errorf("writing the operator's certificate: %w", err)
			}
			pin, err := caFingerprint(filepath.Join(operatorDir, "server-ca.crt"))
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "keys:              %s\n", keys)
			fmt.Fprintf(out, "operator %s:  %s\n", operator, operatorDir)
			fmt.Fprintf(out, "CA fingerprint:    %s\n", pin)
			if _, err := os.Stat(filepath.Join(keys, "root-ca.key")); err == nil {
				fmt.Fprintln(out, "Move the root's key to a safe place with `pfoertner-collector ca move-root DIR`: it is needed only to replace an issuing CA.")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&configFile, "config", "", "configuration file")
	f.StringSliceVar(&names, "name", []string{"localhost", "127.0.0.1", "::1"}, "names and addresses under which this collector is reached")
	f.StringVar(&operator, "operator-name", "admin", "name of the first operator, as the audit log will show it")
	f.StringVar(&operatorDir, "operator-out", defaultOperator(), "directory for the first operator's certificate")
	return cmd
}

// newBundle makes certificates for gateways, further operators and those who
// sign reference values. It works on the state directory, on the collector's
// own machine.
func newBundle(out io.Writer) *cobra.Command {
	var configFile, dir string
	var renew bool
	cmd := &cobra.Command{
		Use:   "bundle gate|operator|signer NAME --out DIR",
		Short: "Make key and certificate for a gateway, an operator or a signer of reference values (on the collector's machine)",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := loadConfig(configFile)
			if err != nil {
				return err
			}
			a, err := authority.Load(filepath.Join(c.State, keysDir), time.Now)
			if err != nil {
				return fmt.Errorf("loading the collector's keys: %w", err)
			}
			role, ok := map[string]mtls.Role{
				"gate": mtls.RoleGate, "operator": mtls.RoleOperator, "signer": mtls.RoleReferenceSigner,
			}[args[0]]
			if !ok {
				return fmt.Errorf("%q is neither gate, operator nor signer", args[0])
			}
			err = recording(cmd.Context(), c, func(record authority.Recorder) error {
				a.RecordTo(record)
				if renew {
					return a.RenewBundle(dir, role, args[1])
				}
				return a.WriteBundle(dir, role, args[1])
			})
			if err != nil {
				return fmt.Errorf("writing the bundle: %w", err)
			}
			fmt.Fprintf(out, "%s %s: %s\n", args[0], args[1], dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "configuration file")
	cmd.Flags().StringVar(&dir, "out", "", "directory to write to")
	cmd.Flags().BoolVar(&renew, "renew", false, "replace the certificate in the directory, for the same key, and the collectors' CAs; the key may be elsewhere")
	cobra.CheckErr(cmd.MarkFlagRequired("out"))
	return cmd
}

func splitNames(names []string) (dns []string, addresses []net.IP) {
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			addresses = append(addresses, ip)
		} else {
			dns = append(dns, n)
		}
	}
	return dns, addresses
}

// caFingerprint is what notebooks pin: the SHA-256 of the server CA.
func caFingerprint(path string) (string, error) {
	certs, err := mtls.ReadCertificates(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(certs[0].Raw)), nil
}

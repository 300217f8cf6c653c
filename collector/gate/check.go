//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"pfoertner/collector/gate/openvpn"
)

// check reads everything that run would read, and says what it finds.
func check(path string, out io.Writer) error {
	config, err := loadConfig(path)
	if err != nil {
		return err
	}
	if err := config.guards(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	o, err := linkOptions(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "gateway %s, collectors %v\n", o.Gateway, o.Addresses)
	unsafe := false
	for _, s := range config.OpenVPN {
		if _, err := s.password(); err != nil {
			return err
		}
		r, err := openvpn.Check(s.Config, s.Management)
		if err != nil {
			return err
		}
		for _, f := range r.Findings {
			word := "note  "
			if f.Unsafe {
				word, unsafe = "UNSAFE", true
			}
			fmt.Fprintf(out, "%s  %s\n", word, f)
		}
		if len(r.Unsafe()) == 0 {
			fmt.Fprintf(out, "ok      %s guards %s\n", s.Config, r.Device)
		}
	}
	if len(config.Quarantine.Destinations) == 0 {
		fmt.Fprintln(out, "note    quarantine.destinations is empty: a device in quarantine reaches nothing, not even the collector")
	}
	if unsafe {
		return errors.New("the gate does not start beside this openvpn configuration")
	}
	return nil
}

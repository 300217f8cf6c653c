package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"pfoertner/agent/durable"
	"pfoertner/agent/identity"
	"pfoertner/agent/service"
	"pfoertner/agent/vpnkey"
)

// newInstall registers and starts the service. Where there is no configuration
// yet it writes the documented one; the service waits until it is filled in.
func newInstall(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	file := f.String("config", defaults().config, "configuration `file` that the service reads")
	return func(context.Context) error {
		name, err := filepath.Abs(*file)
		if err != nil {
			return err
		}
		if _, err := service.Protect((config{}).fill().directories()); err != nil {
			return err
		}
		fresh, err := placeTemplate(name)
		if err != nil {
			return err
		}
		arguments := []string{"run"}
		if name != defaults().config {
			arguments = append(arguments, "--config", name) // has to be there then
		}
		if err := service.Install(arguments...); err != nil {
			return err
		}
		if err := service.Start(); err != nil {
			return fmt.Errorf("installed, but not started: %w", err)
		}
		if fresh {
			fmt.Fprintf(out, "Installed and started. Name the collector in %s: the service waits for it.\n", name)
			return nil
		}
		fmt.Fprintln(out, "Installed and started.")
		return nil
	}
}

// placeTemplate writes the documented configuration unless there is one.
func placeTemplate(name string) (fresh bool, err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return false, fmt.Errorf("placing configuration: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("placing configuration: %w", err)
	}
	_, err = f.Write(template)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, fmt.Errorf("placing configuration: %w", err)
	}
	return true, nil
}

// newUninstall removes the service. Key and certificate stay: this notebook is
// still a device until the inventory says otherwise. `purge` removes them.
func newUninstall(_ *flag.FlagSet, out io.Writer) func(context.Context) error {
	return func(context.Context) error {
		if err := service.Uninstall(); err != nil {
			return err
		}
		fmt.Fprintln(out, "Removed. Key and certificate were kept.")
		return nil
	}
}

// newPurge removes what the service has stored. Uninstallers call it last.
func newPurge(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	keep := f.Bool("keep-identity", false, "keep key and certificate: an installation that follows is the same device")
	return func(context.Context) error {
		if running, err := service.Running(); err == nil && running {
			return errors.New("the service runs: stop it first")
		}
		c, err := s.loadGuarded()
		// A file that cannot be read says nothing of other places. Without any
		// place nothing is removed.
		if c.StateDir == "" {
			return err
		}
		if err := c.purge(s.name(), *keep); err != nil {
			return err
		}
		if *keep {
			fmt.Fprintln(out, "Removed all but key and certificate.")
			return nil
		}
		fmt.Fprintln(out, "Removed. This notebook cannot report any more; retire or re-enrol it in the inventory.")
		return nil
	}
}

// purge removes the agent's files: those that it knows by name. Directories are
// removed when nothing else is in them, so that a path that was set to some
// other directory costs nobody anything.
func (c config) purge(configFile string, keepIdentity bool) error {
	var errs []error
	if !keepIdentity {
		errs = append(errs, c.removeIdentity())
	}
	errs = append(errs, remove(c.memory()...), remove(c.StatusFile, configFile, c.TokenFile))
	for _, dir := range []string{c.StateDir, filepath.Dir(c.StatusFile), filepath.Dir(configFile)} {
		_ = os.Remove(dir) // not empty, or not there: both are fine
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return service.Forget()
}

// removeIdentity removes every key, without making anything.
func (c config) removeIdentity() error {
	if err := remove(vpnkey.Files(c.vpnDirectory())...); err != nil {
		return err
	}
	_ = os.Remove(c.vpnDirectory()) // not empty, or not there: both are fine
	if _, err := os.Stat(c.StateDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	state, err := identity.Open(c.StateDir, c.keys())
	if err != nil {
		return err
	}
	_, err = state.Remove()
	return err
}

// remove removes the files that are there, all that can be.
func remove(files ...string) error {
	var errs []error
	for _, name := range files {
		if err := durable.Remove(name); err != nil {
			errs = append(errs, fmt.Errorf("removing files: %w", err))
		}
	}
	return errors.Join(errs...)
}

// newPrepareImage is for a machine whose disk becomes the image of many: it
// ends with an error while there is a key or token that all of them would share.
func newPrepareImage(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	clean := f.Bool("remove", false, "remove key and token, and all that is known of this machine")
	return func(context.Context) error {
		c, err := s.loadGuarded()
		if err != nil {
			return err
		}
		if running, err := service.Running(); err == nil && running {
			return errors.New("the service runs and may enrol at any moment: stop it first")
		}
		if *clean {
			if err := c.forgetMachine(); err != nil {
				return err
			}
		}
		if err := c.checkImage(); err != nil {
			return err
		}
		fmt.Fprintln(out, "Ready for an image: there is no key on this machine. Every copy enrols by itself, with a token of its own.")
		return nil
	}
}

// checkImage returns an error that names what every copy of this disk would
// carry. It makes nothing.
func (c config) checkImage() error {
	if _, err := os.Stat(c.TokenFile); err == nil {
		return fmt.Errorf("there is a token, %s, and it is good for one notebook alone; --remove removes it", c.TokenFile)
	}
	if _, err := os.Stat(c.StateDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	state, err := identity.Open(c.StateDir, c.keys())
	if err != nil {
		return err
	}
	present, err := state.Present()
	if err == nil && present {
		err = fmt.Errorf("there is a key in %s, and every copy of this disk would carry it; --remove removes it", c.StateDir)
	}
	return err
}

// forgetMachine removes what belongs to this machine alone.
func (c config) forgetMachine() error {
	return errors.Join(c.removeIdentity(), remove(c.memory()...), remove(c.StatusFile, c.TokenFile))
}

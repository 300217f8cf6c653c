package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// treeWatcher notices changes of a tree.
type treeWatcher struct{ tree string }

// Watch implements session.Watcher.
func (w treeWatcher) Watch(ctx context.Context, notify func(sections ...string)) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the tree: %w", err)
	}
	defer watcher.Close()
	err = filepath.WalkDir(w.tree, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = watcher.Add(path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("watching the tree: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-watcher.Errors:
			return fmt.Errorf("watching the tree: %w", err)
		case event, ok := <-watcher.Events:
			if !ok {
				return errors.New("watching the tree ended")
			}
			name, err := filepath.Rel(w.tree, event.Name)
			if err == nil && !strings.HasSuffix(name, newSuffix) {
				notify(sectionsOf(filepath.ToSlash(name))...)
			}
		}
	}
}

// sectionsOf says which sections a file of the tree belongs to; none means all.
func sectionsOf(name string) []string {
	for _, of := range []struct {
		prefix   string
		sections []string
	}{
		{"proc/1/", []string{"volumes"}},
		{"proc/swaps", []string{"volumes"}},
		{"sys/dev/", []string{"volumes"}},
		{"sys/devices/", []string{"volumes"}},
		{"sys/class/block/", []string{"volumes"}},
		{"dev/", []string{"volumes"}},
		{"etc/crypttab", []string{"volumes"}},
		{"var/lib/", []string{"patch"}},
		{"etc/apt/", []string{"patch"}},
		{"ledger.json", []string{"patch"}},
		{"sys/firmware/", []string{"secure_boot"}},
		{"sys/class/tpm/", []string{"tpm"}},
		{"usr/sbin/", []string{"vpn", "firewall"}},
	} {
		if strings.HasPrefix(name, of.prefix) {
			return of.sections
		}
	}
	return nil
}

package probe

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// keyFile says where the key of a mapping lies when no person is asked for it,
// and why that is not known when it is UNSPECIFIED.
func (r *volumeReader) keyFile(l layer) (posturev1.KeyFile, string) {
	if r.crypttabErr != nil {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, r.crypttabErr.Error()
	}
	kind, err := r.locateKey(l)
	if err != nil {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, "where the key lies is unknown: " + err.Error()
	}
	return kind, ""
}

func (r *volumeReader) locateKey(l layer) (posturev1.KeyFile, error) {
	e, ok := r.cryptEntry(l.mapping)
	if !ok {
		return r.keyOfCommandLine(l)
	}
	if script, ok := e.option("keyscript"); ok {
		return r.keyOfScript(path.Base(script), e.key)
	}
	for _, chip := range []string{"tpm2-device", "fido2-device", "pkcs11-uri"} {
		if _, ok := e.option(chip); ok { // a key file is then encrypted for the chip
			return posturev1.KeyFile_KEY_FILE_NONE, nil
		}
	}
	switch {
	case e.key == "":
		return r.keyByConvention(l.mapping)
	case slices.Contains([]string{"/dev/urandom", "/dev/random", "/dev/hwrng", "/dev/hw_random"}, e.key):
		return posturev1.KeyFile_KEY_FILE_RANDOM, nil
	}
	name, device := splitKey(e.key)
	if device != "" {
		return r.keyOnDevice(device)
	}
	return r.keyAt(name)
}

// keyByConvention looks where systemd looks for a key that crypttab does not
// name (crypttab(5), "AUTOMATIC KEY FILES").
func (r *volumeReader) keyByConvention(mapping string) (posturev1.KeyFile, error) {
	for _, dir := range []string{"/etc/cryptsetup-keys.d/", "/run/cryptsetup-keys.d/"} {
		name := dir + mapping + ".key"
		switch _, err := fs.Stat(r.storage.files, name[1:]); {
		case err == nil:
			return r.keyAt(name)
		case !errors.Is(err, fs.ErrNotExist):
			return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, cause(err)
		}
	}
	return posturev1.KeyFile_KEY_FILE_NONE, nil
}

// keyOfScript judges Debian's key scripts (/usr/share/doc/cryptsetup).
func (r *volumeReader) keyOfScript(script, argument string) (posturev1.KeyFile, error) {
	switch script {
	case "askpass", "decrypt_keyctl", "decrypt_ssl", "decrypt_gnupg", "decrypt_gnupg-sc", "decrypt_opensc":
		return posturev1.KeyFile_KEY_FILE_NONE, nil
	case "decrypt_derived":
		l, err := r.storage.node("/dev/mapper/" + argument)
		if err != nil {
			return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, err
		}
		if encrypts(l.kind) {
			return posturev1.KeyFile_KEY_FILE_ON_ENCRYPTED, nil
		}
	}
	return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, errors.New("a key script brings it")
}

// keyAt judges a key file by the volume it lies on, and by /boot when Debian
// copies it into the initramfs.
func (r *volumeReader) keyAt(name string) (posturev1.KeyFile, error) {
	if !path.IsAbs(name) {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, errors.New("crypttab names no absolute path")
	}
	if r.inInitramfs(name) {
		if kind, err := r.keyOn("/boot"); err != nil || kind != posturev1.KeyFile_KEY_FILE_ON_ENCRYPTED {
			return kind, err
		}
	}
	return r.keyOn(name)
}

func (r *volumeReader) keyOn(name string) (posturev1.KeyFile, error) {
	name, err := r.storage.resolve(name)
	if err != nil {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, err
	}
	if m, ok := r.storage.mounts.containing(name); ok && inMemory(m.fstype) {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, errors.New("it is put into memory by something else")
	}
	return r.keyBehind(r.storage.behindFile(name))
}

func (r *volumeReader) keyOnDevice(node string) (posturev1.KeyFile, error) {
	l, err := r.storage.node(node)
	return r.keyBehind([]layer{l}, err)
}

func (r *volumeReader) keyBehind(tops []layer, err error) (posturev1.KeyFile, error) {
	if err != nil {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, err
	}
	ways, err := r.storage.ways(tops)
	if err != nil {
		return posturev1.KeyFile_KEY_FILE_UNSPECIFIED, err
	}
	if len(ways) == 0 || slices.ContainsFunc(ways, func(w diskPath) bool { return !r.crossesCipher(w) }) {
		return posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT, nil
	}
	return posturev1.KeyFile_KEY_FILE_ON_ENCRYPTED, nil
}

// crossesCipher is true for a way with a crypt layer that is not known to
// store in clear. Whether the layer can be verified is said where it is
// reported itself.
func (r *volumeReader) crossesCipher(w diskPath) bool {
	return slices.ContainsFunc(w, func(l layer) bool {
		if !encrypts(l.kind) {
			return false
		}
		h, err := r.storage.header(l)
		return err != nil || !isNull(h.cipher) && !h.keyInClear
	})
}

// keyOfCommandLine judges a key that the kernel command line names for the
// initramfs: systemd's rd.luks.key and luks.key (systemd-cryptsetup-generator(8)),
// cryptkey of Arch's encrypt hook.
func (r *volumeReader) keyOfCommandLine(l layer) (posturev1.KeyFile, error) {
	for _, parameter := range r.cmdline {
		option, value, _ := strings.Cut(parameter, "=")
		switch option {
		case "rd.luks.key", "luks.key":
			if volume, name, ok := strings.Cut(value, "="); ok && !path.IsAbs(volume) {
				if !strings.Contains(l.uuid, bareUUID(strings.TrimPrefix(volume, "luks-"))) {
					continue
				}
				value = name
			}
			if _, device := splitKey(value); device != "" {
				return r.keyOnDevice(device)
			}
			return r.keyOn("/boot")
		case "cryptkey":
			device, _, _ := strings.Cut(value, ":")
			if device == "rootfs" {
				return r.keyOn("/boot")
			}
			return r.keyOnDevice(deviceNode(device))
		}
	}
	return r.keyByConvention(l.mapping)
}

// splitKey separates "/key:LABEL=stick" into the file and the node of the
// device that holds it; a key that is a device itself has no file.
func splitKey(key string) (name, device string) {
	if strings.HasPrefix(key, "/dev/") {
		return "", key
	}
	if node := deviceNode(key); node != key {
		return "", node
	}
	if name, device, _ := strings.Cut(key, ":"); device != "" {
		return name, deviceNode(device)
	}
	return key, ""
}

// deviceNode turns "LABEL=x" into the link that udev makes for it.
func deviceNode(spec string) string {
	for tag, dir := range map[string]string{
		"UUID=":      "by-uuid/",
		"LABEL=":     "by-label/",
		"PARTUUID=":  "by-partuuid/",
		"PARTLABEL=": "by-partlabel/",
		"ID=":        "by-id/",
	} {
		if value, ok := strings.CutPrefix(spec, tag); ok {
			return "/dev/disk/" + dir + value
		}
	}
	return spec
}

// inInitramfs says whether Debian's initramfs hook copies the key file: its
// KEYFILE_PATTERN is a list of shell patterns.
func (r *volumeReader) inInitramfs(name string) bool {
	for line := range strings.Lines(r.initramfsHook) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), "KEYFILE_PATTERN=")
		if !ok {
			continue
		}
		for _, pattern := range strings.Fields(strings.Trim(value, `"'`)) {
			if match, err := path.Match(pattern, name); match || err != nil {
				return true
			}
		}
	}
	return false
}

package probe

import (
	"context"
	"time"
)

// Windows is what a Windows machine shows of itself: raw values and raw codes
// as plain data, so that a recorded answer is as good as the machine. Host
// holds nil on other systems. Each field is one small capability; a probe
// reports FAILED when the one it needs is nil.
//
// Answers wrap ErrNotFound when Windows says that the thing asked for is not
// there. Every type here is written to captures as JSON: what
// docs/collection.md does not name has no place in it.
type Windows struct {
	Registry       Registry
	BitLocker      BitLocker
	Disks          Disks
	Updates        Updates
	Services       Services
	Programs       Programs
	Dialups        Dialups
	Firmware       Firmware
	SecurityChip   SecurityChip
	Firewall       WindowsFirewall
	SecurityCenter SecurityCenter
	Version        VersionCheck
	Licences       Licences
}

// Registry reads HKEY_LOCAL_MACHINE in its 64-bit view.
type Registry interface {
	// Value reads one value; key has no leading hive and no leading backslash.
	Value(key, name string) (RegistryValue, error)
	// Exists says whether a key is there, with or without values.
	Exists(key string) (bool, error)
}

// RegistryValue is one value by its type; exactly one field is meant.
type RegistryValue struct {
	// Type is "SZ", "EXPAND_SZ", "MULTI_SZ", "DWORD", "QWORD" or "BINARY".
	Type   string   `json:"type"`
	Text   string   `json:"text,omitempty"`
	Lines  []string `json:"lines,omitempty"`
	Number uint64   `json:"number,omitempty"`
	Bytes  []byte   `json:"bytes,omitempty"`
}

// BitLocker asks Win32_EncryptableVolume
// (ROOT\CIMV2\Security\MicrosoftVolumeEncryption).
type BitLocker interface {
	// Volumes calls the methods of every volume. ErrNotFound: this Windows has
	// no such namespace.
	Volumes(ctx context.Context) ([]EncryptableVolume, error)
}

// EncryptableVolume is one instance: its properties and what each method
// answered. A method that was not called, because the class does not have it,
// is nil.
type EncryptableVolume struct {
	// Volume is DeviceID, the volume's GUID path. In captures it is replaced by
	// "volume-0" and so on, consistently.
	Volume string `json:"volume"`
	// Letter says whether the volume has a drive letter.
	Letter bool `json:"letter"`
	// Properties are cached by Windows; nil when the class does not have them.
	ProtectionProperty *uint32 `json:"protection_property,omitempty"`
	ConversionProperty *uint32 `json:"conversion_property,omitempty"`
	MethodProperty     *uint32 `json:"method_property,omitempty"`
	// VolumeType: 0 system, 1 fixed, 2 portable.
	VolumeType *uint32 `json:"volume_type,omitempty"`

	Protection *ProtectionAnswer `json:"get_protection_status,omitempty"`
	Conversion *ConversionAnswer `json:"get_conversion_status,omitempty"`
	Method     *MethodAnswer     `json:"get_encryption_method,omitempty"`
	Lock       *LockAnswer       `json:"get_lock_status,omitempty"`
	Version    *VersionAnswer    `json:"get_version,omitempty"`
	Protectors *ProtectorsAnswer `json:"get_key_protectors,omitempty"`
	Suspended  *SuspendAnswer    `json:"get_suspend_count,omitempty"`
}

// ProtectionAnswer is GetProtectionStatus. Return is the method's return
// value, 0 for success, here and below.
type ProtectionAnswer struct {
	Return uint32 `json:"return"`
	Status uint32 `json:"status"` // 0 off, 1 on, 2 unknown
}

// ConversionAnswer is GetConversionStatus with PrecisionFactor 4: percentages
// are in ten-thousandths of a percent.
type ConversionAnswer struct {
	Return     uint32 `json:"return"`
	Status     uint32 `json:"status"`     // 0 decrypted … 5 decryption paused
	Percentage uint32 `json:"percentage"` // 1,000,000 is everything
	Flags      uint32 `json:"flags"`      // bit 0: used space only
	Wiping     uint32 `json:"wiping"`     // 0 no, 1 wiped, 2 running, 3 paused
}

// MethodAnswer is GetEncryptionMethod.
type MethodAnswer struct {
	Return uint32 `json:"return"`
	Method uint32 `json:"method"` // 0 none … 7 XTS-AES 256
	// SelfEncryption is the algorithm's object identifier for hardware
	// encryption; empty otherwise.
	SelfEncryption string `json:"self_encryption,omitempty"`
}

// LockAnswer is GetLockStatus.
type LockAnswer struct {
	Return uint32 `json:"return"`
	Status uint32 `json:"status"` // 0 unlocked, 1 locked
}

// VersionAnswer is GetVersion.
type VersionAnswer struct {
	Return  uint32 `json:"return"`
	Version uint32 `json:"version"` // 0 unknown, 1 Vista, 2 Windows 7 and later
}

// ProtectorsAnswer is GetKeyProtectors(0) with GetKeyProtectorType of each: no
// identifiers, and never a password.
type ProtectorsAnswer struct {
	Return uint32          `json:"return"`
	Types  []ProtectorType `json:"types"`
}

// ProtectorType is GetKeyProtectorType.
type ProtectorType struct {
	Return uint32 `json:"return"`
	Type   uint32 `json:"type"` // 0 other, 1 TPM … 10 SID
}

// SuspendAnswer is GetSuspendCount.
type SuspendAnswer struct {
	Return uint32 `json:"return"`
	Count  uint32 `json:"count"`
}

// Disks lists volumes as the system mounts them, whatever BitLocker knows.
type Disks interface {
	// Volumes lists every volume with and without a letter (FindFirstVolume).
	Volumes(ctx context.Context) ([]DiskVolume, error)
}

// DiskVolume is one volume.
type DiskVolume struct {
	// Volume as in EncryptableVolume.
	Volume string `json:"volume"`
	// DriveType is GetDriveType: 2 removable, 3 fixed, 4 remote, 5 CD, 6 RAM.
	DriveType  uint32 `json:"drive_type"`
	FileSystem string `json:"file_system,omitempty"`
	// Letters is how many drive letters and mount points lead to it.
	Letters int `json:"letters"`
	// System is true for the volume Windows runs from.
	System bool `json:"system"`
	// PartitionType is the GPT type GUID in lower case, or "mbr-07"; empty when
	// it could not be read.
	PartitionType string `json:"partition_type,omitempty"`
	// Problem is why file system or partition type could not be read.
	Problem string `json:"problem,omitempty"`
}

// Updates asks the Windows Update Agent, in a process of its own: it may take
// minutes, leak or hang.
type Updates interface {
	// Search reads the cached scan (Online=false) for what is not installed.
	Search(ctx context.Context) (UpdateSearch, error)
}

// UpdateSearch is what the Windows Update Agent answered.
type UpdateSearch struct {
	// Result is IUpdateSearcher.Search's HRESULT; 0 for success.
	Result uint32 `json:"result"`
	// Code is ISearchResult.ResultCode: 2 succeeded, 3 with errors.
	Code    int32            `json:"code"`
	Pending []OfferedUpdate  `json:"pending"`
	Service SearchedService  `json:"service"`
	Restart *RestartRequired `json:"restart,omitempty"`
	// Times of the last successful search and installation
	// (IAutomaticUpdatesResults, UTC); zero when there was none.
	LastSearch       time.Time `json:"last_search,omitzero"`
	LastInstallation time.Time `json:"last_installation,omitzero"`
}

// OfferedUpdate is one IUpdate that is not installed and not hidden.
type OfferedUpdate struct {
	// ID is Identity.UpdateID, a GUID in lower case that is the same on every
	// machine; empty when Windows tells none.
	ID string `json:"id,omitempty"`
	// Supersedes are SupersededUpdateIDs, in lower case; only of updates that
	// close holes.
	Supersedes []string `json:"supersedes,omitempty"`
	// SupersedesMore says that it may supersede others too: there are too many,
	// or they cannot be read.
	SupersedesMore bool      `json:"supersedes_more,omitempty"`
	KBs            []string  `json:"kbs"`
	Categories     []string  `json:"categories"` // CategoryIDs, lower case
	Severity       string    `json:"severity,omitempty"`
	Changed        time.Time `json:"changed,omitzero"` // LastDeploymentChangeTime
	Downloaded     bool      `json:"downloaded"`
	Reboot         bool      `json:"reboot_required"`
}

// SearchedService is the service that a search asked.
type SearchedService struct {
	// ServerSelection: 0 default, 1 managed server, 2 Windows Update, 3 others.
	ServerSelection int32  `json:"server_selection"`
	ID              string `json:"id,omitempty"`
}

// RestartRequired is Microsoft.Update.SystemInfo.
type RestartRequired struct {
	Result   uint32 `json:"result"`
	Required bool   `json:"required"`
}

// Services asks the service control manager.
type Services interface {
	// Matching lists services by name; a name that ends in "*" is a prefix.
	Matching(ctx context.Context, names ...string) ([]Service, error)
}

// Service is one Windows service.
type Service struct {
	// Name; in captures cut after a "$", behind which people name tunnels.
	Name string `json:"name"`
	// State is SERVICE_STATUS.dwCurrentState: 1 stopped, 4 running.
	State uint32 `json:"state"`
	// StartType is 2 automatic, 3 on demand, 4 disabled.
	StartType uint32 `json:"start_type"`
	// Program is the executable of ImagePath, without arguments.
	Program string `json:"program,omitempty"`
}

// Programs identifies executables.
type Programs interface {
	// Identify checks the signature and reads the version resource.
	Identify(ctx context.Context, path string) (Program, error)
}

// Program is who made an executable.
type Program struct {
	// Trust is WinVerifyTrust's result; 0 is valid, 0x800B0100 not signed.
	Trust uint32 `json:"trust"`
	// Publisher is the common name of the signer's certificate.
	Publisher   string `json:"publisher,omitempty"`
	FileVersion string `json:"file_version,omitempty"` // "3.1.4.0"
	ProductName string `json:"product_name,omitempty"`
}

// Dialups asks the Remote Access Service.
type Dialups interface {
	// Connections lists live connections, all users' as far as they show.
	Connections(ctx context.Context) ([]Dialup, error)
}

// Dialup is one RAS connection, without its name.
type Dialup struct {
	DeviceType string `json:"device_type"` // "vpn", "PPPoE", "modem"
	// State is RASCONNSTATE: 0x2000 connected.
	State uint32 `json:"state"`
}

// Firmware reads UEFI variables and the SMBIOS table.
type Firmware interface {
	// Variable reads an UEFI variable of a vendor GUID
	// "{8be4df61-…}". ErrNotFound: there is no such variable;
	// ErrNotApplicable: started by a legacy BIOS.
	Variable(name, vendor string) ([]byte, error)
	// SMBIOS returns the raw table with its 8-byte header (RSMB). Captures keep
	// structures 1 and 3 only, without UUID.
	SMBIOS() ([]byte, error)
}

// SecurityChip asks TPM Base Services.
type SecurityChip interface {
	// Device is Tbsi_GetDeviceInfo.
	Device() (ChipAnswer, error)
}

// ChipAnswer is Tbsi_GetDeviceInfo. Result 0x8028400F: there is no TPM.
type ChipAnswer struct {
	Result  uint32 `json:"result"`
	Version uint32 `json:"version"` // 1: 1.2, 2: 2.0
}

// WindowsFirewall asks INetFwPolicy2.
type WindowsFirewall interface {
	Profiles(ctx context.Context) (FirewallAnswer, error)
}

// FirewallAnswer is INetFwPolicy2.
type FirewallAnswer struct {
	// Current is the bit mask of profiles in force: 1 domain, 2 private,
	// 4 public.
	Current  uint32            `json:"current"`
	Profiles []FirewallProfile `json:"profiles"`
}

// FirewallProfile is one profile, with the HRESULT of each property.
type FirewallProfile struct {
	Profile       uint32 `json:"profile"` // one bit as above
	EnabledResult uint32 `json:"enabled_result"`
	Enabled       bool   `json:"enabled"`
	// Inbound is DefaultInboundAction: 0 block, 1 allow.
	InboundResult uint32 `json:"inbound_result"`
	Inbound       uint32 `json:"inbound"`
	// BlockAll: BlockAllInboundTraffic.
	BlockAll bool `json:"block_all"`
}

// SecurityCenter asks the Windows Security Center.
type SecurityCenter interface {
	Antivirus(ctx context.Context) (SecurityAnswer, error)
}

// SecurityAnswer is WscGetSecurityProviderHealth and IWSCProductList, or on
// servers, which have neither, Defender's own state.
type SecurityAnswer struct {
	// HealthResult is its HRESULT, Health 0 good, 1 not monitored, 2 poor,
	// 3 snoozed.
	HealthResult uint32            `json:"health_result"`
	Health       uint32            `json:"health"`
	ListResult   uint32            `json:"list_result"`
	Products     []SecurityProduct `json:"products"`
}

// SecurityProduct is one registered product.
type SecurityProduct struct {
	Name string `json:"name"`
	// State is WSC_SECURITY_PRODUCT_STATE: 0 on, 1 off, 2 snoozed, 3 expired.
	State uint32 `json:"state"`
	// SignatureStatus: 0 out of date, 1 up to date.
	SignatureStatus uint32 `json:"signature_status"`
	// ProductState is the raw word of AntiVirusProduct
	// (root\SecurityCenter2); nil where there is none.
	ProductState *uint32 `json:"product_state,omitempty"`
}

// Licences asks the Software Licensing Service.
type Licences interface {
	// ExtendedUpdates lists the licences for Extended Security Updates that
	// this machine knows, used or not. Other licences, and product keys, are
	// not read.
	ExtendedUpdates(ctx context.Context) ([]ProductLicence, error)
}

// ProductLicence is one SoftwareLicensingProduct.
type ProductLicence struct {
	// ID is the activation identifier, a GUID in lower case. It is the same on
	// every machine.
	ID string `json:"id"`
	// Status is LicenseStatus: 0 unlicensed, 1 licensed, 2 to 6 grace periods
	// and notification.
	Status uint32 `json:"status"`
}

// VersionCheck is the kernel's own word on which Windows it is.
type VersionCheck interface {
	// Running is RtlGetVersion.
	Running() (major, minor, build uint32, err error)
}

-- What wixl 0.101 cannot say, one statement a line; run by msibuild.

-- A setting that nobody made is not written.
UPDATE `Component` SET `Condition` = 'COLLECTOR' WHERE `Component` = 'Collector'
UPDATE `Component` SET `Condition` = 'SERVERNAME' WHERE `Component` = 'ServerName'
UPDATE `Component` SET `Condition` = 'CAFILE' WHERE `Component` = 'CAFile'
UPDATE `Component` SET `Condition` = 'CAFINGERPRINT' WHERE `Component` = 'CAFingerprint'
UPDATE `Component` SET `Condition` = 'TOKENFILE' WHERE `Component` = 'TokenFile'
UPDATE `Component` SET `Condition` = 'UNIT' WHERE `Component` = 'Unit'
UPDATE `Component` SET `Condition` = 'KEEPSTATE' WHERE `Component` = 'KeepState'
UPDATE `Component` SET `Condition` = 'DEVICEKEY' WHERE `Component` = 'DeviceKey'

-- Settings pass from msiexec's caller to the installer's service, and are starred out in its log.
UPDATE `Property` SET `Value` = 'COLLECTOR;SERVERNAME;CAFILE;CAFINGERPRINT;TOKENFILE;UNIT;DEVICEKEY;KEEPSTATE;WIX_DOWNGRADE_DETECTED;WIX_UPGRADE_DETECTED' WHERE `Property` = 'SecureCustomProperties'
INSERT INTO `Property` (`Property`, `Value`) VALUES ('MsiHiddenProperties', 'COLLECTOR;SERVERNAME;CAFILE;CAFINGERPRINT;TOKENFILE;UNIT;DEVICEKEY;SavedCollector;SavedServerName;SavedCAFile;SavedCAFingerprint;SavedTokenFile;SavedUnit;SavedDeviceKey')

-- An agent whose service cannot be registered is not installed (msidbServiceInstallErrorControlVital).
UPDATE `ServiceInstall` SET `ErrorControl` = 32769 WHERE `ServiceInstall` = 'Service'

-- The program carries a version: a newer one replaces an older one, whatever the dates of the files.
UPDATE `File` SET `Version` = '@VERSION@', `Language` = '0' WHERE `File` = 'AgentExe'
DELETE FROM `MsiFileHash` WHERE `File_` = 'AgentExe'

-- Names for volumes that have 8.3 names only, which the format wants.
UPDATE `File` SET `FileName` = 'PFOERTNR.EXE|pfoertner-agent.exe' WHERE `File` = 'AgentExe'
UPDATE `Directory` SET `DefaultDir` = 'PFOERTNR|Pfoertner' WHERE `Directory` = 'VENDORDIR'

package chip

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog"
)

// scheme is that of every statement: the attestation key's own.
func scheme() tpm2.TPMTSigScheme { return tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull} }

// Certify lets the attestation key state that the TPM holds key, for a
// question (attest.Qualify): TPMS_ATTEST and TPMT_SIGNATURE.
func (c *Chip) Certify(ak, key *Key, qualifying []byte) (message, signature []byte, err error) {
	err = c.do("certifying key", func(tpm transport.TPM) error {
		handles, err := c.load(tpm, key, ak)
		if err != nil {
			return err
		}
		rsp, err := tpm2.Certify{
			ObjectHandle: handles[0], SignHandle: handles[1],
			QualifyingData: tpm2.TPM2BData{Buffer: qualifying}, InScheme: scheme(),
		}.Execute(tpm)
		if err != nil {
			return err
		}
		message, signature = rsp.CertifyInfo.Bytes(), tpm2.Marshal(rsp.Signature)
		return nil
	})
	return message, signature, err
}

// quoteAttempts is how often a quote is repeated when somebody extends a PCR
// between reading the values and quoting them.
const quoteAttempts = 3

// Quote lets the attestation key state the PCRs of the SHA-256 bank, for a
// question (attest.Qualify), with their values and the event log. A log that
// cannot be read is left out.
func (c *Chip) Quote(ak *Key, pcrs []uint32, qualifying []byte) (*attest.Quote, error) {
	selection, err := selectPCRs(pcrs)
	if err != nil {
		return nil, err
	}
	for range quoteAttempts {
		q := &attest.Quote{}
		err = c.do("quoting PCRs", func(tpm transport.TPM) (err error) {
			if q.Values, err = readPCRs(tpm, pcrs); err != nil {
				return err
			}
			handles, err := c.load(tpm, ak)
			if err != nil {
				return err
			}
			rsp, err := tpm2.Quote{
				SignHandle: handles[0], PCRSelect: selection,
				QualifyingData: tpm2.TPM2BData{Buffer: qualifying}, InScheme: scheme(),
			}.Execute(tpm)
			if err != nil {
				return err
			}
			q.Message, q.Signature = rsp.Quoted.Bytes(), tpm2.Marshal(rsp.Signature)
			return nil
		})
		if err != nil {
			return nil, err
		}
		// A quote ends with the digest of the values (Part 2, 10.12.1).
		if digest := sha256.Sum256(slices.Concat(q.Values...)); bytes.HasSuffix(q.Message, digest[:]) {
			q.EventLog = c.eventLog()
			return q, nil
		}
	}
	return nil, errors.New("quoting PCRs: they change all the time")
}

func (c *Chip) eventLog() []byte {
	if c.log == nil {
		return nil
	}
	log, err := c.log()
	if err != nil || len(log) > bootlog.MaxBytes {
		return nil
	}
	return log
}

func selectPCRs(pcrs []uint32) (tpm2.TPMLPCRSelection, error) {
	selected := make([]byte, 3)
	for i, pcr := range pcrs {
		// A TPM quotes them in ascending order, whatever was asked for.
		if pcr >= 24 || i > 0 && pcr <= pcrs[i-1] {
			return tpm2.TPMLPCRSelection{}, fmt.Errorf("%w: PCRs %d: they are 0 to 23, ascending", errRefused, pcrs)
		}
		selected[pcr/8] |= 1 << (pcr % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: selected}}}, nil
}

// readPCRs reads the values of PCRs, in their order. A TPM returns the first
// few of those that are asked for, at most eight: the rest is asked again.
func readPCRs(tpm transport.TPM, pcrs []uint32) ([][]byte, error) {
	values := make([][]byte, 0, len(pcrs))
	for len(values) < len(pcrs) {
		selection, err := selectPCRs(pcrs[len(values):])
		if err != nil {
			return nil, err
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection}.Execute(tpm)
		if err != nil {
			return nil, err
		}
		digests := rsp.PCRValues.Digests
		if len(digests) == 0 || len(digests) > len(pcrs)-len(values) {
			return nil, fmt.Errorf("%w: the TPM has no SHA-256 bank", errRefused)
		}
		for _, d := range digests {
			values = append(values, d.Buffer)
		}
	}
	return values, nil
}

// Activate opens the secret of a challenge, which is for this TPM's
// endorsement key and this attestation key only.
func (c *Chip) Activate(ak *Key, ek *Endorsement, credential, wrapped []byte) (secret []byte, err error) {
	err = c.do("activating credential", func(tpm transport.TPM) error {
		handles, err := c.load(tpm, ak)
		if err != nil {
			return err
		}
		opened, err := openEndorsementKey(tpm, ek.template)
		if err != nil {
			return err
		}
		defer opened.close(tpm)
		key := opened.AuthHandle
		if ek.template.Policy {
			key.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, byEndorsementHierarchy)
		}
		rsp, err := tpm2.ActivateCredential{
			ActivateHandle: handles[0], KeyHandle: key,
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: wrapped},
		}.Execute(tpm)
		if err != nil {
			return err
		}
		secret = rsp.CertInfo.Buffer
		return nil
	})
	return secret, err
}

// byEndorsementHierarchy fulfils the policy of endorsement keys.
func byEndorsementHierarchy(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session, NonceTPM: nonce,
	}.Execute(tpm)
	return err
}

// openEndorsementKey takes the endorsement key that lies in the TPM already,
// or makes it anew, which is the same key but takes RSA seconds.
func openEndorsementKey(tpm transport.TPM, template attest.Template) (*parent, error) {
	for _, handle := range []tpm2.TPMHandle{0x81010001, 0x81010002} {
		rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(tpm)
		if errors.Is(err, tpm2.TPMRCHandle) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if attest.SameTemplate(template, rsp.OutPublic.Bytes()) {
			return &parent{AuthHandle: tpm2.AuthHandle{Handle: handle, Name: rsp.Name, Auth: tpm2.PasswordAuth(nil)}}, nil
		}
	}
	return createPrimary(tpm, tpm2.TPMRHEndorsement, template)
}

// manufacturer reads who made the TPM, and its firmware, as it says itself.
func manufacturer(tpm transport.TPM) (name, firmware string, err error) {
	property := func(p tpm2.TPMPT) (uint32, error) {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(tpm)
		if err != nil {
			return 0, err
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil || len(list.TPMProperty) != 1 {
			return 0, fmt.Errorf("%w: the TPM does not say its property %#x", errRefused, uint32(p))
		}
		return list.TPMProperty[0].Value, nil
	}
	var values [3]uint32
	for i, p := range []tpm2.TPMPT{tpm2.TPMPTManufacturer, tpm2.TPMPTFirmwareVersion1, tpm2.TPMPTFirmwareVersion2} {
		if values[i], err = property(p); err != nil {
			return "", "", err
		}
	}
	id := []byte{byte(values[0] >> 24), byte(values[0] >> 16), byte(values[0] >> 8), byte(values[0])}
	return string(bytes.TrimRight(bytes.ToValidUTF8(id, nil), " \x00")),
		fmt.Sprintf("%d.%d.%d.%d", values[1]>>16, values[1]&0xffff, values[2]>>16, values[2]&0xffff), nil
}

package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/collector/appraisal"
	"pfoertner/collector/audit"
	"pfoertner/collector/authority"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// everyCall asks every method of every service once.
func everyCall(ctx context.Context, conn *grpc.ClientConn) map[string]error {
	devices, inventory := fleetv1.NewFleetServiceClient(conn), fleetv1.NewInventoryServiceClient(conn)
	policies, log := fleetv1.NewPolicyServiceClient(conn), fleetv1.NewAuditServiceClient(conn)
	errs := map[string]error{}
	_, errs["ListDevices"] = devices.ListDevices(ctx, &fleetv1.ListDevicesRequest{})
	_, errs["GetDevice"] = devices.GetDevice(ctx, &fleetv1.GetDeviceRequest{})
	_, errs["Explain"] = devices.Explain(ctx, &fleetv1.ExplainRequest{})
	_, errs["ListSessions"] = devices.ListSessions(ctx, &fleetv1.ListSessionsRequest{})
	_, errs["ListEvents"] = devices.ListEvents(ctx, &fleetv1.ListEventsRequest{})
	_, errs["Import"] = inventory.Import(ctx, &fleetv1.ImportRequest{})
	_, errs["Bind"] = inventory.Bind(ctx, &fleetv1.BindRequest{})
	_, errs["CreateToken"] = inventory.CreateToken(ctx, &fleetv1.CreateTokenRequest{})
	_, errs["SetState"] = inventory.SetState(ctx, &fleetv1.SetStateRequest{})
	_, errs["Check"] = policies.Check(ctx, &fleetv1.CheckRequest{})
	_, errs["Show"] = policies.Show(ctx, &fleetv1.ShowRequest{})
	_, errs["History"] = policies.History(ctx, &fleetv1.HistoryRequest{})
	apply, err := policies.Apply(ctx, &fleetv1.ApplyRequest{})
	errs["Apply"] = first(apply, err)
	verify, err := log.Verify(ctx, &fleetv1.VerifyRequest{})
	errs["Verify"] = first(verify, err)
	references := fleetv1.NewReferenceServiceClient(conn)
	_, errs["ShowReferences"] = references.ShowReferences(ctx, &fleetv1.ShowReferencesRequest{})
	_, errs["ListReferences"] = references.ListReferences(ctx, &fleetv1.ListReferencesRequest{})
	imported, err := references.ImportReferences(ctx, &fleetv1.ImportReferencesRequest{})
	errs["ImportReferences"] = first(imported, err)
	_, errs["Collect"] = devices.Collect(ctx, &fleetv1.CollectRequest{})
	orders := fleetv1.NewOrderServiceClient(conn)
	_, errs["GiveOrder"] = orders.GiveOrder(ctx, &fleetv1.GiveOrderRequest{})
	_, errs["ListProposals"] = orders.ListProposals(ctx, &fleetv1.ListProposalsRequest{})
	_, errs["WithdrawProposal"] = orders.WithdrawProposal(ctx, &fleetv1.WithdrawProposalRequest{})
	tpms := fleetv1.NewEndorsementServiceClient(conn)
	_, errs["ListAuthorities"] = tpms.ListAuthorities(ctx, &fleetv1.ListAuthoritiesRequest{})
	_, errs["AddAuthorities"] = tpms.AddAuthorities(ctx, &fleetv1.AddAuthoritiesRequest{})
	boot := fleetv1.NewBootReferenceServiceClient(conn)
	_, errs["ListBootReferences"] = boot.ListBootReferences(ctx, &fleetv1.ListBootReferencesRequest{})
	_, errs["SetBootReference"] = boot.SetBootReference(ctx, &fleetv1.SetBootReferenceRequest{})
	return errs
}

func first[T any](stream grpc.ServerStreamingClient[T], err error) error {
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func methods() (n int) {
	for _, file := range []protoreflect.FileDescriptor{fleetv1.File_pfoertner_fleet_v1_fleet_proto, fleetv1.File_pfoertner_fleet_v1_orders_proto} {
		for i := range file.Services().Len() {
			n += file.Services().Get(i).Methods().Len()
		}
	}
	return n
}

// deviceCertificate is what a notebook gets that this very collector takes in.
func (h *house) deviceCertificate(t *testing.T) func() (*tls.Certificate, error) {
	t.Helper()
	key, err := attest.NewKey()
	check(t, err)
	issued, err := h.keys.IssueDevice(deviceID(1), key.Public(), 0)
	check(t, err)
	return func() (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: issued.Chain, PrivateKey: key}, nil
	}
}

func TestOnlyOperatorsGetAnAnswer(t *testing.T) {
	h := build(t)
	h.serve(t)
	gate := filepath.Join(t.TempDir(), "gate")
	check(t, h.keys.WriteGate(gate, "vpn-1"))
	other, err := authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	check(t, err)
	stranger := filepath.Join(t.TempDir(), "stranger")
	check(t, other.WriteOperator(stranger, "anna"))

	for who, certificate := range map[string]func() (*tls.Certificate, error){
		"a device":                      h.deviceCertificate(t),
		"nobody":                        nil,
		"a gate":                        mtls.FromFiles(filepath.Join(gate, "gate.crt"), filepath.Join(gate, "gate.key")),
		"the collector":                 h.keys.ServerCertificate,
		"another authority's operators": mtls.FromFiles(filepath.Join(stranger, "operator.crt"), filepath.Join(stranger, "operator.key")),
	} {
		errs := everyCall(t.Context(), h.dial(t, certificate, h.keys.Servers()))
		if len(errs) != methods() {
			t.Fatalf("%d methods asked, there are %d", len(errs), methods())
		}
		for method, err := range errs {
			if code := status.Code(err); code != codes.Unavailable {
				t.Errorf("%s asks %s: %v, want no connection", who, method, err)
			}
		}
	}
	for method, err := range everyCall(t.Context(), h.operator(t, "anna")) {
		if code := status.Code(err); code == codes.Unavailable || code == codes.Unauthenticated || code == codes.Unimplemented {
			t.Errorf("anna asks %s: %v", method, err)
		}
	}
}

// A listener that was set up without TLS answers nobody.
func TestWithoutCertificatesEveryCallIsRefused(t *testing.T) {
	h := build(t)
	conn, err := grpc.NewClient(listen(t, NewServer(t.Context(), h.options())), grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(t, err)
	defer conn.Close()
	for method, err := range everyCall(t.Context(), conn) {
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v, want UNAUTHENTICATED", method, err)
		}
	}
}

func TestTooMuchIsRefused(t *testing.T) {
	h := build(t)
	h.serve(t)
	conn := h.operator(t, "anna")
	_, err := fleetv1.NewInventoryServiceClient(conn).Import(t.Context(), &fleetv1.ImportRequest{Csv: make([]byte, maxCSV+1)})
	refused(t, err, codes.InvalidArgument, "CSV file has 16777217 bytes")
	_, err = fleetv1.NewInventoryServiceClient(conn).Import(t.Context(), &fleetv1.ImportRequest{Csv: make([]byte, maxRequest+1)})
	refused(t, err, codes.ResourceExhausted, "")
	_, err = fleetv1.NewPolicyServiceClient(conn).Check(t.Context(), &fleetv1.CheckRequest{Yaml: make([]byte, maxPolicy+1)})
	refused(t, err, codes.InvalidArgument, "policy file")
	stream, err := fleetv1.NewPolicyServiceClient(conn).Apply(t.Context(), &fleetv1.ApplyRequest{Yaml: appraisal.DefaultPolicy(), Comment: strings.Repeat("x", 5000)})
	refused(t, first(stream, err), codes.InvalidArgument, "comment")
	_, err = fleetv1.NewFleetServiceClient(conn).GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: strings.Repeat("x", 5000)})
	refused(t, err, codes.InvalidArgument, "device")
	if len(h.verifier.versions()) != 0 {
		t.Error("a refused policy was adopted")
	}
}

const csv = "asset_number,vendor,serial,unit\nHB-000001,Lenovo,PF1,finanzen\nHB-000002,Dell,PF2,inneres\n"

func TestTheInventoryIsChangedInTheOperatorsName(t *testing.T) {
	h := build(t)
	h.serve(t)
	inventory := fleetv1.NewInventoryServiceClient(h.operator(t, "anna"))
	plan, err := inventory.Import(t.Context(), &fleetv1.ImportRequest{Csv: []byte(csv), DryRun: true})
	check(t, err)
	if len(plan.GetChanges()) != 2 || plan.GetApplied() || len(h.registry.All()) != 0 {
		t.Errorf("dry run: %v, then %d assets", plan, len(h.registry.All()))
	}
	done, err := inventory.Import(t.Context(), &fleetv1.ImportRequest{Csv: []byte(csv)})
	check(t, err)
	if !done.GetApplied() || len(h.registry.All()) != 2 {
		t.Errorf("import: %v, then %d assets", done, len(h.registry.All()))
	}
	wrong, err := inventory.Import(t.Context(), &fleetv1.ImportRequest{Csv: []byte(csv + "HB-000003,Dell,PF2,inneres\n")})
	check(t, err)
	if len(wrong.GetErrors()) == 0 || wrong.GetErrors()[0].GetLine() != 4 || wrong.GetApplied() || len(h.registry.All()) != 2 {
		t.Errorf("import with an error: %v, then %d assets", wrong, len(h.registry.All()))
	}

	sum := bytes.Repeat([]byte{9}, 32)
	_, err = inventory.Bind(t.Context(), &fleetv1.BindRequest{Device: "HB-000001", CertificateSha256: sum})
	check(t, err)
	if d, ok := h.registry.DeviceOfCertificate(sum); !ok || d.GetAsset().GetAssetNumber() != "HB-000001" {
		t.Errorf("certificate belongs to %v", d)
	}
	token, err := inventory.CreateToken(t.Context(), &fleetv1.CreateTokenRequest{AssetNumber: "HB-000001"})
	check(t, err)
	if token.GetToken() == "" || !token.GetExpiresAt().AsTime().Equal(morning.Add(72*time.Hour)) {
		t.Errorf("token until %v, want 72 h", token.GetExpiresAt().AsTime())
	}
	state, err := inventory.SetState(t.Context(), &fleetv1.SetStateRequest{
		Device: "HB-000002", State: fleetv1.AssetState_ASSET_STATE_SUSPENDED, Reason: "Verlust",
	})
	check(t, err)
	if got := state.GetDevice().GetAsset().GetState(); got != fleetv1.AssetState_ASSET_STATE_SUSPENDED {
		t.Errorf("state %v", got)
	}
	events, err := h.store.Events(t.Context(), "", time.Time{}, 100)
	check(t, err)
	if len(events) < 4 {
		t.Errorf("%d audit records, want one for each change", len(events))
	}
	for _, e := range events {
		if e.GetActor() != "anna" {
			t.Errorf("%s by %q, want anna", e.GetKind(), e.GetActor())
		}
		if strings.Contains(fmt.Sprint(e.GetDetails()), token.GetToken()) {
			t.Error("the token stands in the audit log")
		}
	}
}

func TestWhatCannotBeDoneIsRefusedWithAReason(t *testing.T) {
	h := build(t)
	h.serve(t)
	inventory := fleetv1.NewInventoryServiceClient(h.operator(t, "anna"))
	_, err := inventory.Import(t.Context(), &fleetv1.ImportRequest{Csv: []byte(csv)})
	check(t, err)
	sum := bytes.Repeat([]byte{9}, 32)
	_, err = inventory.Bind(t.Context(), &fleetv1.BindRequest{Device: "HB-000001", CertificateSha256: sum})
	check(t, err)
	retired := fleetv1.AssetState_ASSET_STATE_RETIRED
	_, err = inventory.SetState(t.Context(), &fleetv1.SetStateRequest{Device: "HB-000002", State: retired})
	check(t, err)

	bind := func(device string, sum []byte) error {
		_, err := inventory.Bind(t.Context(), &fleetv1.BindRequest{Device: device, CertificateSha256: sum})
		return err
	}
	token := func(asset string, lifetime time.Duration) error {
		_, err := inventory.CreateToken(t.Context(), &fleetv1.CreateTokenRequest{AssetNumber: asset, Lifetime: durationpb.New(lifetime)})
		return err
	}
	state := func(device string, s fleetv1.AssetState) error {
		_, err := inventory.SetState(t.Context(), &fleetv1.SetStateRequest{Device: device, State: s})
		return err
	}
	_, empty := inventory.Import(t.Context(), &fleetv1.ImportRequest{})
	_, forever := inventory.CreateToken(t.Context(), &fleetv1.CreateTokenRequest{AssetNumber: "HB-000001", Lifetime: &durationpb.Duration{Seconds: 1 << 60}})
	for _, tt := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{empty, codes.InvalidArgument, "CSV file is empty"},
		{bind("", sum), codes.InvalidArgument, "no device named"},
		{bind("HB-000001", sum[:31]), codes.InvalidArgument, "31 bytes"},
		{bind("HB-0815", sum), codes.NotFound, `"HB-0815"`},
		{bind("HB-000002", bytes.Repeat([]byte{8}, 32)), codes.FailedPrecondition, "HB-000002"},
		{bind("HB-000002", sum), codes.AlreadyExists, "HB-000001"},
		{token("", 0), codes.InvalidArgument, "no asset named"},
		{token("HB-000001", 73*time.Hour), codes.InvalidArgument, "72h"},
		{token("HB-000001", -time.Hour), codes.InvalidArgument, "lifetime"},
		{forever, codes.InvalidArgument, "lifetime"},
		{token("HB-0815", time.Hour), codes.NotFound, "not known here"},
		{token("HB-000002", time.Hour), codes.FailedPrecondition, "HB-000002"},
		{state("", retired), codes.InvalidArgument, "no device named"},
		{state("HB-000001", 0), codes.InvalidArgument, "no state named"},
		{state("HB-0815", retired), codes.NotFound, "not known here"},
		{state("HB-000002", fleetv1.AssetState_ASSET_STATE_ACTIVE), codes.FailedPrecondition, "retired to active"},
	} {
		refused(t, tt.err, tt.code, tt.text)
	}
}

func apply(ctx context.Context, conn *grpc.ClientConn, yaml []byte) (steps []*fleetv1.ApplyResponse, err error) {
	stream, err := fleetv1.NewPolicyServiceClient(conn).Apply(ctx, &fleetv1.ApplyRequest{Yaml: yaml, Comment: "Frist gekürzt"})
	for err == nil {
		var step *fleetv1.ApplyResponse
		if step, err = stream.Recv(); err == nil {
			steps = append(steps, step)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return steps, err
}

func TestAPolicyIsPutInForceAndKept(t *testing.T) {
	h := build(t)
	h.serve(t)
	conn := h.operator(t, "anna")
	policies := fleetv1.NewPolicyServiceClient(conn)
	yaml := appraisal.DefaultPolicy()

	checked, err := policies.Check(t.Context(), &fleetv1.CheckRequest{Yaml: yaml})
	check(t, err)
	if checked.GetName() != "dienstgeraete" || checked.GetRules() == 0 || len(checked.GetErrors()) != 0 {
		t.Errorf("check: %v", checked)
	}
	_, err = policies.Show(t.Context(), &fleetv1.ShowRequest{})
	refused(t, err, codes.NotFound, "policy version 0: not known here")

	steps, err := apply(t.Context(), conn, yaml)
	check(t, err)
	if len(steps) != 3 || steps[0].GetDone() || !steps[2].GetDone() || steps[2].GetVersion() != 1 || steps[2].GetNowDenied() != 1 || steps[2].GetAppraised() != 2 {
		t.Errorf("steps %v", steps)
	}
	again := append(slices.Clone(yaml), "\n# once more\n"...)
	_, err = apply(t.Context(), h.operator(t, "bernd"), again)
	check(t, err)
	if got := h.verifier.versions(); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("adopted versions %v", got)
	}

	shown, err := policies.Show(t.Context(), &fleetv1.ShowRequest{Version: 1})
	check(t, err)
	if !bytes.Equal(shown.GetYaml(), yaml) || shown.GetPolicy().GetOperator() != "anna" {
		t.Errorf("version 1 is %v", shown.GetPolicy())
	}
	history, err := policies.History(t.Context(), &fleetv1.HistoryRequest{})
	check(t, err)
	if all := history.GetVersions(); len(all) != 2 || all[0].GetVersion() != 2 || all[0].GetOperator() != "bernd" ||
		all[0].GetComment() != "Frist gekürzt" || !all[0].GetAppliedAt().AsTime().Equal(morning) || len(all[0].GetSha256()) != 32 {
		t.Errorf("history %v", all)
	}
	events, err := h.store.Events(t.Context(), "", time.Time{}, 10)
	check(t, err)
	if len(events) != 2 || events[0].GetKind() != "policy.applied" || events[0].GetActor() != "bernd" ||
		events[0].GetDetails()["sha256"] != hex.EncodeToString(history.GetVersions()[0].GetSha256()) {
		t.Errorf("events %v", events)
	}
}

func TestAPolicyThatDoesNotCheckChangesNothing(t *testing.T) {
	h := build(t)
	h.serve(t)
	conn := h.operator(t, "anna")
	for _, yaml := range []string{"rules: [", "name: x\ncolour: red\n", "\xff\xfe"} {
		steps, err := apply(t.Context(), conn, []byte(yaml))
		check(t, err)
		if len(steps) != 1 || !steps[0].GetDone() || len(steps[0].GetErrors()) == 0 || steps[0].GetVersion() != 0 {
			t.Errorf("%q: %v", yaml, steps)
		}
		checked, err := fleetv1.NewPolicyServiceClient(conn).Check(t.Context(), &fleetv1.CheckRequest{Yaml: []byte(yaml)})
		check(t, err)
		if len(checked.GetErrors()) == 0 || checked.GetErrors()[0].GetMessage() == "" {
			t.Errorf("%q: check says %v", yaml, checked)
		}
	}
	versions, err := h.store.Policies(t.Context())
	check(t, err)
	if len(versions) != 0 || len(h.verifier.versions()) != 0 {
		t.Errorf("kept %v, adopted %v", versions, h.verifier.versions())
	}
}

func TestAPolicyIsAppliedThoughTheOperatorHangsUp(t *testing.T) {
	h := build(t)
	h.serve(t)
	halfway, hungUp := make(chan struct{}), make(chan struct{})
	h.verifier.between = func(ctx context.Context) {
		close(halfway)
		<-hungUp
		if err := ctx.Err(); err != nil {
			t.Errorf("the work ended with the call: %v", err)
		}
	}
	ctx, hangUp := context.WithCancel(t.Context())
	conn := h.operator(t, "anna")
	done := make(chan error)
	go func() {
		_, err := apply(ctx, conn, appraisal.DefaultPolicy())
		done <- err
	}()
	<-halfway
	_, err := apply(t.Context(), h.operator(t, "bernd"), appraisal.DefaultPolicy())
	refused(t, err, codes.Aborted, "another policy")
	hangUp()
	refused(t, <-done, codes.Canceled, "")
	close(hungUp)
	for len(h.verifier.versions()) == 0 { // until the handler that nobody waits for is done
		select {
		case <-t.Context().Done():
			t.Fatal("the policy was not adopted")
		default:
		}
	}
}

func verify(t *testing.T, conn *grpc.ClientConn, noted []byte) []*fleetv1.VerifyResponse {
	t.Helper()
	stream, err := fleetv1.NewAuditServiceClient(conn).Verify(t.Context(), &fleetv1.VerifyRequest{NotedHead: noted})
	check(t, err)
	var steps []*fleetv1.VerifyResponse
	for {
		step, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return steps
		}
		check(t, err)
		steps = append(steps, step)
	}
}

func TestTheAuditLogIsVerifiedWhileItGrows(t *testing.T) {
	h := build(t)
	h.serve(t)
	conn := h.operator(t, "anna")
	if steps := verify(t, conn, audit.Genesis().Hash); len(steps) != 1 || !steps[0].GetDone() || len(steps[0].GetFaults()) != 0 {
		t.Errorf("empty log: %v", steps)
	}
	records := make([]audit.Record, progressRecords+5)
	for i := range records {
		records[i] = audit.Record{At: morning, Kind: "verdict.changed"}
	}
	check(t, h.store.AppendAudit(t.Context(), records...))
	ctx, stop := context.WithCancel(t.Context())
	growing := make(chan struct{})
	go func() {
		defer close(growing)
		for h.store.AppendAudit(ctx, records[0]) == nil {
			continue
		}
	}()
	for range 5 {
		steps := verify(t, conn, nil)
		last := steps[len(steps)-1]
		if len(steps) < 2 || steps[0].GetDone() || steps[0].GetChecked() != progressRecords || !last.GetDone() || len(last.GetFaults()) != 0 {
			t.Errorf("steps %v", steps)
		}
	}
	stop()
	<-growing
}

func TestAChangedAuditLogIsFound(t *testing.T) {
	h := build(t)
	h.serve(t)
	conn := h.operator(t, "anna")
	for range 10 {
		check(t, h.store.AppendAudit(t.Context(), audit.Record{At: morning, Kind: "token.created", Actor: "anna"}))
	}
	whole := verify(t, conn, nil)
	noted := whole[0].GetHead()
	meddle := func(statement string) {
		db, err := sql.Open("sqlite", h.path)
		check(t, err)
		defer db.Close()
		_, err = db.Exec(statement)
		check(t, err)
	}
	meddle(`UPDATE audit SET actor = 'bernd' WHERE sequence = 4`)
	if steps := verify(t, conn, noted); len(steps[0].GetFaults()) != 1 || steps[0].GetFaults()[0].GetSequence() != 4 || steps[0].GetFaults()[0].GetKind() != "changed" {
		t.Errorf("changed: %v", steps)
	}
	// The end cut off and the head moved back: only the noted hash tells.
	meddle(`DELETE FROM audit WHERE sequence > 3`)
	meddle(`UPDATE audit_head SET sequence = 3, hash = (SELECT hash FROM audit WHERE sequence = 3)`)
	if steps := verify(t, conn, nil); len(steps[0].GetFaults()) != 0 {
		t.Errorf("without the noted hash: %v", steps)
	}
	if steps := verify(t, conn, noted); len(steps[0].GetFaults()) != 1 || steps[0].GetFaults()[0].GetKind() != "missing" {
		t.Errorf("with the noted hash: %v", steps)
	}
	stream, err := fleetv1.NewAuditServiceClient(conn).Verify(t.Context(), &fleetv1.VerifyRequest{NotedHead: []byte("short")})
	refused(t, first(stream, err), codes.InvalidArgument, "5 bytes")
}

// Command csi-front stands between csi-sanity and a driver for ephemeral inline volumes, and asks
// the driver as a kubelet does: csi-sanity wants a Controller service to make volumes, publishes
// them writable, and names targets as no kubelet would.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

type front struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	identity csi.IdentityClient
	node     csi.NodeClient
	// What the kubelet says of the pod, and the attributes in the pod's manifest.
	context map[string]string
}

func main() {
	listen := flag.String("listen", "", "socket for csi-sanity")
	driver := flag.String("driver", "", "socket of the driver")
	volume := flag.String("context", "", "JSON file with the volume context of every volume")
	flag.Parse()
	content, err := os.ReadFile(*volume)
	must(err)
	front := &front{}
	must(json.Unmarshal(content, &front.context))
	// The driver's HTTP/2 refuses the path of a socket as an authority.
	connection, err := grpc.NewClient("unix:"+*driver, grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	front.identity, front.node = csi.NewIdentityClient(connection), csi.NewNodeClient(connection)
	socket, err := net.Listen("unix", *listen)
	must(err)
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, front)
	csi.RegisterControllerServer(server, front)
	csi.RegisterNodeServer(server, front)
	must(server.Serve(socket))
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func (f *front) GetPluginInfo(ctx context.Context, request *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return f.identity.GetPluginInfo(ctx, request)
}

func (f *front) Probe(ctx context.Context, request *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return f.identity.Probe(ctx, request)
}

// The driver's, and the Controller service that csi-sanity makes volumes with.
func (f *front) GetPluginCapabilities(ctx context.Context, request *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	response, err := f.identity.GetPluginCapabilities(ctx, request)
	if err == nil {
		service := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
		response.Capabilities = append(response.Capabilities,
			&csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: service}})
	}
	return response, err
}

func (f *front) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{}, nil
}

// Of an inline volume there is nothing to make: it has a name and a context.
func (f *front) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	volume := &csi.Volume{VolumeId: "csi-" + request.GetName(), VolumeContext: f.context}
	return &csi.CreateVolumeResponse{Volume: volume}, nil
}

func (f *front) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

func (f *front) NodeGetCapabilities(ctx context.Context, request *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return f.node.NodeGetCapabilities(ctx, request)
}

func (f *front) NodeGetInfo(ctx context.Context, request *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return f.node.NodeGetInfo(ctx, request)
}

func (f *front) NodePublishVolume(ctx context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	request.Readonly = true
	request.TargetPath = target(request.TargetPath)
	return f.node.NodePublishVolume(ctx, request)
}

func (f *front) NodeUnpublishVolume(ctx context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	request.TargetPath = target(request.TargetPath)
	return f.node.NodeUnpublishVolume(ctx, request)
}

// csi-sanity's "…/target" as the kubelet has it: "…/mount".
func target(path string) string {
	if filepath.Base(path) != "target" {
		return path
	}
	return filepath.Join(filepath.Dir(path), "mount")
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// provisioner is the name by which a StorageClass asks for the volumes made here.
	provisioner = "foreshore.dev/test-local"
	// wantedFrom names on a claim who should make its volume; the controller manager writes it.
	wantedFrom = "volume.kubernetes.io/storage-provisioner"
	// selectedNode names on a claim the node that its first pod was placed on; the scheduler writes it.
	selectedNode = "volume.kubernetes.io/selected-node"
	// provisionedBy names on a volume who made it, so that the controller manager leaves its removal to us.
	provisionedBy = "pv.kubernetes.io/provisioned-by"
	// round is how often claims and volumes are looked at. That costs no request: they are watched.
	round = 250 * time.Millisecond
)

// volumes makes a directory on a node's disk for each claim, and removes it when its claim is gone. Nothing holds a
// volume to its size.
type volumes struct {
	client  kubernetes.Interface
	claims  listers.PersistentVolumeClaimLister
	volumes listers.PersistentVolumeLister
	// machines holds a directory for each node, named like it.
	machines string
}

func localVolumesCommand() *cobra.Command {
	var kubeconfig, machines string
	command := &cobra.Command{
		Use:  "local-volumes",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return localVolumes(command.Context(), kubeconfig, machines)
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the API server")
	command.Flags().StringVar(&machines, "machines", "", "directory with a directory for each node, named like it")
	return command
}

func localVolumes(ctx context.Context, kubeconfig, machines string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	v := volumes{
		client:   client,
		claims:   factory.Core().V1().PersistentVolumeClaims().Lister(),
		volumes:  factory.Core().V1().PersistentVolumes().Lister(),
		machines: machines,
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		if err := v.once(ctx); err != nil {
			slog.Error("tried again soon", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(round):
		}
	}
}

// once makes the volumes that are asked for and lack, and removes those that nobody claims any more.
func (v *volumes) once(ctx context.Context) error {
	claims, err := v.claims.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, claim := range claims {
		wanted := claim.Annotations[wantedFrom] == provisioner && claim.Annotations[selectedNode] != ""
		if wanted && claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil {
			if err := v.provision(ctx, claim); err != nil {
				return fmt.Errorf("claim %s/%s: %w", claim.Namespace, claim.Name, err)
			}
		}
	}
	existing, err := v.volumes.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, volume := range existing {
		ours := volume.Annotations[provisionedBy] == provisioner && volume.Spec.Local != nil
		if ours && volume.Status.Phase == core.VolumeReleased && volume.DeletionTimestamp == nil &&
			volume.Spec.PersistentVolumeReclaimPolicy == core.PersistentVolumeReclaimDelete {
			if err := v.remove(ctx, volume); err != nil {
				return fmt.Errorf("volume %s: %w", volume.Name, err)
			}
		}
	}
	return nil
}

// provision makes a directory that only root may write: what wants to write there has to ask for it with fsGroup, as on
// a new disk.
func (v *volumes) provision(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	name := "pvc-" + string(claim.UID)
	if _, err := v.volumes.Get(name); err == nil {
		return nil // made already; the claim is about to be bound
	}
	node := claim.Annotations[selectedNode]
	directory := filepath.Join(v.machines, node, "volumes", name)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}},
		Spec: core.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      core.ResourceList{core.ResourceStorage: claim.Spec.Resources.Requests[core.ResourceStorage]},
			ClaimRef:                      &core.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			NodeAffinity:                  onlyOn(node),
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: directory}},
			StorageClassName:              *claim.Spec.StorageClassName,
			VolumeMode:                    claim.Spec.VolumeMode,
		},
	}
	_, err := v.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if err == nil {
		slog.Info("made", "volume", name, "node", node, "claim", claim.Namespace+"/"+claim.Name)
	}
	if errors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

func (v *volumes) remove(ctx context.Context, volume *core.PersistentVolume) error {
	if err := os.RemoveAll(volume.Spec.Local.Path); err != nil {
		return err
	}
	slog.Info("removed", "volume", volume.Name)
	err := v.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	return err
}

func onlyOn(node string) *core.VolumeNodeAffinity {
	hostname := core.NodeSelectorRequirement{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node}}
	return &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{
		{MatchExpressions: []core.NodeSelectorRequirement{hostname}},
	}}}
}

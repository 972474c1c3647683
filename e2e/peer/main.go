// A virtual node of virtual-kubelet whose provider runs nothing: what a node's own work costs at least, for the bench.
// A pod runs as soon as it is created, and has ended as soon as it is deleted. The client has no limits of its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	dto "github.com/prometheus/client_model/go"
	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Requests to the API server.
var requests atomic.Int64

type counting struct{ http.RoundTripper }

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	requests.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

// The pods, by namespace and name. What is kept is never changed: it is shared with the node's controllers.
type nothing struct {
	mutex  sync.Mutex
	pods   map[string]*corev1.Pod
	notify func(*corev1.Pod)
}

func key(namespace, name string) string { return namespace + "/" + name }

func (n *nothing) keep(pod *corev1.Pod) {
	n.mutex.Lock()
	n.pods[key(pod.Namespace, pod.Name)] = pod
	n.mutex.Unlock()
}

func (n *nothing) NotifyPods(_ context.Context, notify func(*corev1.Pod)) { n.notify = notify }

func (n *nothing) CreatePod(_ context.Context, pod *corev1.Pod) error {
	pod, now := pod.DeepCopy(), metav1.Now()
	condition := func(kind corev1.PodConditionType) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue}
	}
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: "192.0.2.1", PodIP: "192.0.2.2", StartTime: &now,
		Conditions: []corev1.PodCondition{condition(corev1.PodInitialized), condition(corev1.PodReady), condition(corev1.PodScheduled)},
	}
	for _, container := range pod.Spec.Containers {
		running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses,
			corev1.ContainerStatus{Name: container.Name, Image: container.Image, Ready: true, State: running})
	}
	n.keep(pod)
	n.notify(pod)
	return nil
}

func (n *nothing) UpdatePod(_ context.Context, pod *corev1.Pod) error {
	n.keep(pod.DeepCopy())
	return nil
}

func (n *nothing) DeletePod(_ context.Context, pod *corev1.Pod) error {
	n.mutex.Lock()
	delete(n.pods, key(pod.Namespace, pod.Name))
	n.mutex.Unlock()
	pod, now := pod.DeepCopy(), metav1.Now()
	pod.Status.Phase = corev1.PodSucceeded
	for index := range pod.Status.ContainerStatuses {
		status := &pod.Status.ContainerStatuses[index]
		status.Ready = false
		status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: now, Reason: "Completed"}}
	}
	n.notify(pod)
	return nil
}

func (n *nothing) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if pod, ok := n.pods[key(namespace, name)]; ok {
		return pod, nil
	}
	return nil, errdefs.NotFoundf("pod %s/%s is not here", namespace, name)
}

func (n *nothing) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, err := n.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &pod.Status, nil
}

func (n *nothing) GetPods(context.Context) ([]*corev1.Pod, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	pods := make([]*corev1.Pod, 0, len(n.pods))
	for _, pod := range n.pods {
		pods = append(pods, pod)
	}
	return pods, nil
}

var errNothing = fmt.Errorf("nothing runs here")

func (*nothing) GetContainerLogs(context.Context, string, string, string, api.ContainerLogOpts) (io.ReadCloser, error) {
	return nil, errNothing
}

func (*nothing) RunInContainer(context.Context, string, string, string, []string, api.AttachIO) error {
	return errNothing
}

func (*nothing) AttachToContainer(context.Context, string, string, string, api.AttachIO) error {
	return errNothing
}

func (*nothing) PortForward(context.Context, string, string, int32, io.ReadWriteCloser) error {
	return errNothing
}

func (*nothing) GetStatsSummary(context.Context) (*stats.Summary, error) { return nil, errNothing }

func (*nothing) GetMetricsResource(context.Context) ([]*dto.MetricFamily, error) {
	return nil, errNothing
}

func run() error {
	name := flag.String("name", "peer", "the node's name")
	kubeconfig := flag.String("kubeconfig", "", "who it is")
	counts := flag.String("requests", "127.0.0.1:10260", "where the number of its requests is told")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper { return counting{inner} })
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	provider := func(given nodeutil.ProviderConfig) (nodeutil.Provider, node.NodeProvider, error) {
		much := corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("1000"), corev1.ResourceMemory: resource.MustParse("1Ti"), corev1.ResourcePods: resource.MustParse("1000"),
		}
		given.Node.Status.Capacity, given.Node.Status.Allocatable = much, much
		given.Node.Labels["type"] = "peer"
		given.Node.Spec.Taints = []corev1.Taint{{Key: "kvmlet.io/peer", Effect: corev1.TaintEffectNoSchedule}}
		return &nothing{pods: map[string]*corev1.Pod{}}, nil, nil
	}
	made, err := nodeutil.NewNode(*name, provider, nodeutil.WithClient(client))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *counts)
	if err != nil {
		return err
	}
	go func() {
		log.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, requests.Load())
		})))
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return made.Run(ctx)
}

func main() {
	if err := run(); err != nil && err != context.Canceled {
		log.Fatal(err)
	}
}

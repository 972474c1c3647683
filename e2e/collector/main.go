// Command collector is the OpenTelemetry collector with what the tests need of it: a receiver of OTLP,
// and an exporter that appends each batch of traces to a file, as a line of OTLP's JSON.
package main

import (
	"context"
	"log"
	"os"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
)

// lines is the exporter's configuration.
type lines struct {
	Path string `mapstructure:"path"`
}

// file writes what comes.
type file struct {
	component.StartFunc
	component.ShutdownFunc
	consumer.Traces
}

func open(_ context.Context, _ exporter.Settings, config component.Config) (exporter.Traces, error) {
	output, err := os.OpenFile(config.(*lines).Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	traces, err := consumer.NewTraces(func(_ context.Context, batch ptrace.Traces) error {
		text, err := (&ptrace.JSONMarshaler{}).MarshalTraces(batch)
		if err != nil {
			return err
		}
		// One call a batch, so that no two of them mix.
		_, err = output.Write(append(text, '\n'))
		return err
	})
	return file{Traces: traces}, err
}

func components() (otelcol.Factories, error) {
	receivers, err := otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory())
	if err != nil {
		return otelcol.Factories{}, err
	}
	empty := func() component.Config { return &lines{} }
	exporters, err := otelcol.MakeFactoryMap(exporter.NewFactory(
		component.MustNewType("lines"), empty, exporter.WithTraces(open, component.StabilityLevelDevelopment)))
	if err != nil {
		return otelcol.Factories{}, err
	}
	return otelcol.Factories{Receivers: receivers, Exporters: exporters, Telemetry: otelconftelemetry.NewFactory()}, nil
}

func main() {
	files := confmap.ResolverSettings{
		ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
		DefaultScheme:     "file",
	}
	settings := otelcol.CollectorSettings{
		BuildInfo:              component.BuildInfo{Command: "collector", Description: "OTLP to a file, for tests", Version: "0"},
		Factories:              components,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: files},
	}
	if err := otelcol.NewCommand(settings).Execute(); err != nil {
		log.Fatal(err)
	}
}

#!/bin/sh
# Builds the OpenTelemetry Collector of builder.yaml into .cache/otelcol/ with the official builder.
# Does nothing where that very build is there already. About 7 minutes on 2 cores when nothing is
# cached; needs Go 1.25 or newer. The last line of its output is the path of the binary.
set -eu

version=0.165.0
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${OTELCOL_CACHE:-$root/.cache/otelcol}
binary=$cache/otelcol-vllm
stamp=$cache/built-from
say() { echo "otelcol: $*" >&2; }

command -v go >/dev/null || {
    say "Go is missing. Install Go 1.25 or newer (Debian: apt install golang), then run this again."
    exit 3
}
mkdir -p "$cache"
exec 9>"$cache/lock"
if command -v flock >/dev/null; then
    flock 9 # two test runs that start together build once
fi

wanted=$(cat "$here/builder.yaml" "$here/build.sh" | sha256sum | cut -d' ' -f1)
if [ -x "$binary" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    say "up to date: $("$binary" --version)"
    echo "$binary"
    exit 0
fi

say "installing the builder, version $version"
GOBIN=$cache/bin go install "go.opentelemetry.io/collector/cmd/builder@v$version"
say "building the Collector, version $version (minutes when nothing is cached)"
rm -rf "$cache/build"
mkdir -p "$cache/build"
cp "$here/builder.yaml" "$cache/build/"
(
    cd "$cache/build"
    CGO_ENABLED=0 "$cache/bin/builder" --config builder.yaml --ldflags="-s -w" >&2
)
mv -f "$cache/build/otelcol-vllm" "$binary"
rm -rf "$cache/build"
echo "$wanted" >"$stamp"
say "built: $("$binary" --version)"
echo "$binary"

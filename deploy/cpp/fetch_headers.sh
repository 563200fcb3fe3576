#!/usr/bin/env bash
# Unpack the headers that the C++ library is compiled with into a folder, from Debian's packages.
# Nothing is installed. A release that lacks ONNX Runtime takes it from the next one, by the
# system's own mirror.
#
#     deploy/cpp/fetch_headers.sh build/cpp-headers
set -euo pipefail
target=$(realpath -m "${1:?give a folder}")
packages=(libonnxruntime-dev nlohmann-json3-dev)
later=trixie

[ -f "$target/.complete" ] && exit 0
command -v apt-get >/dev/null || {
  echo "no apt-get here: set ONNXRUNTIME_ROOT to a folder with ONNX Runtime's headers" >&2
  exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
# The first place that the system takes Debian from, whichever form its list has.
place=$({ cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true; } \
  | grep -oE '^(URIs:|deb) .*' | grep -oE '(https?|file|copy):[^ ]*' | sed -n 1p)
: "${place:?no Debian mirror in this system\'s apt sources}"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $place $later main" >"$work/sources.list"
private=(-o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/parts"
  -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=root")
apt-get -qq "${private[@]}" update
(cd "$work" && apt-get -qq "${private[@]}" download "${packages[@]}")
mkdir -p "$target"
for package in "$work"/*.deb; do
  dpkg-deb -x "$package" "$target"
done
touch "$target/.complete"

#!/usr/bin/env bash
# Unpack the headers that the C++ library is compiled with into a folder. The headers of ONNX
# Runtime and nlohmann-json come from Debian packages, those of TensorRT 10.14 from a wheel on PyPI
# that carries them (its Python code is never run). Nothing is installed. The Debian packages are
# those of trixie, because older releases lack ONNX Runtime, and come from the system's own mirror.
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
# The first Debian mirror of the system's apt sources, in either format of the list.
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
# Without pip, or offline, the library is built without TensorRT, and CMake says so.
wheel=kernel-lens==2.0.1
hash=sha256:07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0
if echo "$wheel --hash=$hash" >"$work/wheel.txt" &&
  python3 -m pip download --quiet --no-deps --require-hashes --only-binary :all: --dest "$work" \
    --requirement "$work/wheel.txt" 2>"$work/pip.log"; then
  python3 -m zipfile -e "$work"/kernel_lens-*.whl "$work/wheel"
  mkdir -p "$target/usr/include/tensorrt"
  cp "$work"/wheel/kernel_lens/include/tensorrt/*.h "$target/usr/include/tensorrt/"
  touch "$target/.complete"
else
  echo "TensorRT's headers cannot be fetched: $(tail -1 "$work/pip.log")" >&2
fi

#!/usr/bin/env bash
# Installs the Debian packages that the tests use, where apt-get and the right to use it are at hand; says so where they are not.
set -euo pipefail

packages=(make git chromium fonts-wqy-microhei iproute2)  # a browser and Chinese letters for the report, namespaces for two nodes

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [[ $(id -u) -ne 0 ]]; then
    echo "not installed (needs apt-get and root): ${missing[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"

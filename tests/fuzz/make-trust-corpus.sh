#!/bin/sh
# Makes the seed corpus of the fuzz targets for what vouches for images, by the tools people sign with.
# Usage: tests/fuzz/make-trust-corpus.sh   (needs gpg, openssl, coreutils)
set -eu
cd "$(dirname "$0")"
out=$PWD/corpus
rm -rf "$out/sums" "$out/cosign" "$out/openpgp" "$out/certificate"
mkdir -p "$out/sums" "$out/cosign" "$out/openpgp" "$out/certificate"
work=$(mktemp -d)
trap 'gpgconf --kill gpg-agent; rm -rf "$work"' EXIT
cd "$work"
export GNUPGHOME=$work/gnupg
mkdir -m 700 gnupg

# Sums files in every form, and addresses.
printf x > disk.img
printf x > "back\\slash"
sha256sum disk.img back* > "$out/sums/text"
sha512sum --binary disk.img > "$out/sums/binary"
sha256sum --tag disk.img back* > "$out/sums/tag"
printf 'https://user@Host:443/a/../b%%20c/./disk.img?q#f' > "$out/sums/url"
printf 'registry.example.com:5000/golden/*' > "$out/sums/pattern"
# Failed once: a host of dots alone.
printf 'https://../f' > "$out/sums/empty-labels"

# A key with a signing subkey, and what it signed: at a fixed time, for a target that knows when "now" is.
run() { gpg --batch --quiet --yes --pinentry-mode loopback --passphrase '' --faked-system-time 20260101T000000 "$@"; }
printf '%064d  disk.img\n' 1 > list
run --quick-generate-key fuzz ed25519 cert never
fingerprint=$(gpg --batch --with-colons --list-keys fuzz | awk -F: '/^fpr/ { print $10; exit }')
run --quick-add-key "$fingerprint" ed25519 sign never
run --output "$out/openpgp/key" --export fuzz
run --output "$out/openpgp/armoured-key" --armor --export fuzz
run --output "$out/openpgp/detached" --detach-sign list
run --output "$out/openpgp/armoured" --armor --detach-sign list
run --output "$out/openpgp/clear" --clear-sign list
cp list "$out/openpgp/list"

# Certificates of every kind of key, a key's PEM, and the JSON of registries (behind the byte that chooses).
certificate() { # name, options of genpkey …
    name=$1; shift
    openssl genpkey -quiet "$@" -out "$name.key"
    openssl req -x509 -new -key "$name.key" -subj "/CN=$name" -days 3650 -outform DER -out "$out/certificate/$name"
    { printf '\002'; openssl pkey -in "$name.key" -pubout; } > "$out/cosign/$name"
}
certificate rsa -algorithm RSA -pkeyopt rsa_keygen_bits:2048
certificate p256 -algorithm EC -pkeyopt ec_paramgen_curve:P-256
certificate p384 -algorithm EC -pkeyopt ec_paramgen_curve:P-384
certificate p521 -algorithm EC -pkeyopt ec_paramgen_curve:P-521
certificate ed25519 -algorithm ED25519
openssl genpkey -quiet -genparam -algorithm DSA -pkeyopt dsa_paramgen_bits:2048 -out dsa.params
certificate dsa -paramfile dsa.params
openssl req -x509 -new -key rsa.key -subj /CN=pss -days 3650 -sigopt rsa_padding_mode:pss -out "$out/certificate/pss"
digest=sha256:$(sha256sum list | cut -d ' ' -f 1)
printf '\001{"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","size":9,"digest":"%s","annotations":{"dev.cosignproject.cosign/signature":"MAYCAQECAQE="}}]}' "$digest" > "$out/cosign/manifest"
printf '\000{"manifests":[{"digest":"%s","artifactType":"application/vnd.dev.cosign.artifact.sig.v1+json"}]}' "$digest" > "$out/cosign/index"
du -sh "$out/sums" "$out/cosign" "$out/openpgp" "$out/certificate"

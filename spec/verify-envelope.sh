#!/bin/sh
# SPDX-License-Identifier: EUPL-1.2
# Checks evenlane envelopes with a shell and OpenSSL (3.0 or later) alone: spec/records.md, "Keys" and "Envelope".
# It shares no code with evenlane, so that a stranger need not take evenlane's word for its own signatures.
#   sh verify-envelope.sh FILE [KEYID]...     FILE has one envelope a line; with key ids, only these may have signed
# Prints "good KEYID SHA256-OF-PAYLOAD" or "BAD REASON" a line. Exit: 0 all good, 1 some bad, 2 usage, 3 cannot run.
set -u
export LC_ALL=C
[ $# -ge 1 ] && [ -r "$1" ] || { echo "usage: sh verify-envelope.sh FILE [KEYID]..." >&2; exit 2; }
case $(openssl version 2>/dev/null) in
  OpenSSL\ [3-9]*) ;; *) echo "this needs OpenSSL 3.0 or later on the path" >&2; exit 3 ;;
esac
file=$1 && shift
trusted=" $* "
work=$(mktemp -d) || exit 3
trap 'rm -rf "$work"' EXIT
trap 'exit 3' HUP INT TERM
line_of='^\{"evenlane":1,"key":"([A-Za-z0-9_-]{43})","payload":"([A-Za-z0-9_-]+)","sig":"([A-Za-z0-9_-]{86})"\}$'
# Points of small order and second spellings of a point, in hex: RFC 8032, 5.1.3, leaves open what becomes of them.
odd='^(0[01](00){30}[08]0|(e[c-f]|f[0-9a-f])(ff){30}[7f]f'
odd=$odd'|c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03[7f]a'
odd=$odd'|26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc[08]5)'

hex() { od -An -v -tx1 | tr -d ' \n'; }
unbase64() { # $work/$1.b64 into $work/$1; only the one spelling that encodes back to itself
  tr -- '-_' '+/' < "$work/$1.b64" | awk '{ while (length($0) % 4) $0 = $0 "="; print }' |
    openssl base64 -d -A > "$work/$1" 2>/dev/null || return 1
  openssl base64 -A -in "$work/$1" | tr '+/' '-_' | tr -d '=' | cmp -s - "$work/$1.b64"
}
check() { # the envelope in $work/line; $why says what is wrong
  why="not an envelope as evenlane writes it" && grep -Eq "$line_of" "$work/line" || return 1
  for part in 1:key 2:payload 3:sig; do
    sed -E "s/$line_of/\\${part%:*}/" "$work/line" | tr -d '\n' > "$work/${part#*:}.b64"
    why="bad base64 in ${part#*:}" && unbase64 "${part#*:}" || return 1
  done
  why="key or signature of a forger's shape" && hex < "$work/key" | grep -Eq "$odd" && return 1
  head -c 32 "$work/sig" | hex | grep -Eq "$odd" && return 1
  key=$(cat "$work/key.b64") && why="signed by $key, whom you did not name"
  case $trusted in "  " | *" $key "*) ;; *) return 1 ;; esac
  { printf '\060\052\060\005\006\003\053\145\160\003\041\000' && cat "$work/key"; } > "$work/der"
  why="the signature is not this key's over this payload" && openssl pkeyutl -verify -pubin -keyform DER \
    -inkey "$work/der" -rawin -in "$work/payload" -sigfile "$work/sig" > /dev/null 2>&1
}
bad=0
while IFS= read -r line || [ -n "$line" ]; do
  printf '%s\n' "$line" > "$work/line"
  if check; then echo "good $key $(openssl dgst -sha256 -r < "$work/payload" | cut -d ' ' -f 1)"
  else echo "BAD $why" && bad=1; fi
done < "$file"
exit $bad

# Sourced by the scripts whose results are kept outside the tree, each in a folder named by the hash of its inputs:
#   kind=NAME                 what it is, for messages and the folder's name
#   begin DIGEST              prints the folder and ends the script where it is there; else `$partial` is empty and to be filled
#   finish WORDS              puts `$partial` into its place and prints the folder
# Progress goes to stderr; the last line of stdout is the folder of the result. A second caller waits for the first one's result.
# shellcheck shell=sh disable=SC2154 # the sourcing script sets kind
cache=${KVMLET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kvmlet}

say() { printf '%s: %s\n' "$kind" "$*" >&2; }

digest() { sha256sum | cut -c1-16; }

begin() {
    out=$cache/$kind-$1
    partial=$out.partial
    if [ ! -e "$out/.complete" ]; then
        mkdir -p "$cache"
        exec 9>"$out.lock"
        flock 9
    fi
    if [ -e "$out/.complete" ]; then
        say "cached"
        echo "$out"
        exit 0
    fi
    rm -rf "$partial" "$out"
    mkdir "$partial"
    started=$(date +%s)
}

finish() {
    touch "$partial/.complete"
    mv "$partial" "$out"
    say "built in $(($(date +%s) - started)) s${1:+, $1}"
    echo "$out"
}

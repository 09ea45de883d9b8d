# The wgpu backend. If it was asked for by name, a machine without a GPU for it fails.
[ "$what:$sanitize" = test: ] || return 0
[ -z "$only" ] || export SYNCBN_REQUIRE="$SYNCBN_REQUIRE,wgpu"
for program in "$here"/tests/wgpu.*; do
    tests "${program##*/wgpu.}" "$program" "$@"
done

# The CUDA backend on one GPU.
[ "$what" = test ] || return 0
for program in "$here"/tests/cuda.*; do
    name=${program##*/cuda.}
    case $sanitize:$name in
    :*) tests "$name" "$program" "$@" ;;
    *-conformance) tests "$name-$sanitize" "$here/sanitize" "$sanitize" "$program" "$@" ;;
    # Without those that are long, ask for more memory than there is, or watch the device's free memory.
    *-memory | *-graph | *-errors)
        tests "$name-$sanitize" "$here/sanitize" "$sanitize" "$program" \
            --skip 2_to_the_31 --skip 1000_times --skip has_not_begun --skip does_not_have "$@"
        ;;
    esac
done

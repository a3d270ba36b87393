# On two emulated hosts: ranks decode, something happens to rank 1; how each rank ended, and after how long.
# usage: fault.sh none|kill|stop|parent|cut HELIX HOSTS MODEL SECONDS, in a folder for the ranks' files
fault=$1 helix=$2 hosts=$3 model=$4 limit=$5

cat > rank.sh <<'END'
rank=$OMPI_COMM_WORLD_RANK
"$@" 2> "errors.$rank" &
echo $! > "pid.$rank"
# mpirun ends what it started by a signal; the rank's status and last words are still wanted.
trap 'kill -TERM $! 2> /dev/null' TERM
while wait $!; status=$?; kill -0 $! 2> /dev/null; do :; done
echo "$status $(date +%s%N)" > "status.$rank"
# mpirun hears how the rank ended.
[ $status -le 128 ] || kill -$((status - 128)) $$
exit $status
END

# Text without end, from a model that says little of sense.
mpirun -n 2 bash rank.sh "$helix" run "$model" -p "The sky" -n 60000 --ignore-eos --temp 0 \
    --transport mpi --kvp 2 -t 1 --comm-timeout 4 > text 2> mpirun.errors &
mpirun=$!
deadline=$((SECONDS + 60))
until [ -s text ]; do
    [ $SECONDS -lt $deadline ] || { echo "no text"; cat mpirun.errors errors.*; exit 1; }
    sleep 0.1
done
# What was started is the rank's parent.
parent=$(cat pid.1)
read -r rank < "/proc/$parent/task/$parent/children"
start=$(date +%s%N)
case $fault in
kill) kill -KILL $rank ;;
stop) kill -STOP $rank ;;
parent)
    kill -KILL "$parent"
    # Sooner than mpirun ends what is left.
    sleep 0.3
    kill -0 $rank 2> /dev/null && echo "rank 1 outlives its parent"
    ;;
cut) "$hosts" control cut host1 > /dev/null ;;
esac
deadline=$((SECONDS + limit))
while [ $SECONDS -lt $deadline ]; do
    [ -s status.0 ] && [ -s status.1 ] && break
    kill -0 $mpirun 2> /dev/null || break
    sleep 0.1
done
for rank in 0 1; do
    [ -s status.$rank ] || continue
    read -r status at < status.$rank
    echo "rank $rank: status $status after $(((at - start) / 1000000)) ms: $(grep '^error' errors.$rank)"
done
for rank in 0 1; do
    kill -0 "$(cat pid.$rank)" 2> /dev/null && echo "rank $rank runs"
done
# mpirun waits for the host that it cannot reach (docs/hosts.md).
[ "$fault" = cut ] && kill -KILL $mpirun 2> /dev/null
wait $mpirun
status=$?
echo "mpirun: status $status after $((($(date +%s%N) - start) / 1000000)) ms: $(grep 'process rank' mpirun.errors)"

#!/bin/sh
# journalctl for the Collector's receiver, which notes a line as read before the line is in the queue. So the last one that is noted is
# read again: it may come twice, but is never skipped. Where the note is lost, and at first, the last hour is read.
case " $* " in
  *" --after-cursor "*) ;;
  *) set -- "$@" --no-tail --since=-1h ;;
esac
for word; do
  shift
  [ "$word" != --after-cursor ] || word=--cursor
  set -- "$@" "$word"
done
# Of each entry only what is sent: others may be as large as a core dump.
exec journalctl --output-fields=MESSAGE,PRIORITY,_SYSTEMD_UNIT,SYSLOG_IDENTIFIER,_PID "$@"

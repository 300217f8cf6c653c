# The guest's end of the channel: runs what it reads, one command between two
# lines "@@", each in a shell of its own, and answers with what it printed and
# its exit status.
echo "@@ ready $(cat /proc/sys/kernel/random/boot_id)"
while IFS= read -r line; do
  [ "$line" = "@@" ] || continue
  : >/run/channel.command
  while IFS= read -r line && [ "$line" != "@@" ]; do printf '%s\n' "$line" >>/run/channel.command; done
  sh /run/channel.command >/run/channel.output 2>&1 </dev/null
  status=$?
  base64 /run/channel.output
  echo "@@ $status"
done

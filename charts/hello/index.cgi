#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# What httpd answers `/` with, as there is no index.html.
address=$(/bin/busybox ip -4 -o addr show scope global | while read -r _ _ _ cidr _; do
  echo "${cidr%/*}"
  break
done)
greeting="Hello from ${ORC_TASK_NAME:-$(/bin/busybox hostname)}"
printf 'Content-Type: text/plain; charset=utf-8\r\n\r\n'
printf '%s\nhostname: %s\naddress: %s\nnode: %s\n' "$greeting" "$(/bin/busybox hostname)" \
  "${address:-none}" "${ORC_NODE_HOSTNAME:-unknown}"

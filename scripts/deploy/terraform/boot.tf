# What the instance finds when it boots: paths, what is there, and the user data that fetches it.

locals {
  published = [
    for port in var.publish : {
      port     = tonumber(regex("^[0-9]+", port))
      protocol = endswith(port, "/udp") ? "udp" : "tcp"
    }
  ]

  destinations = coalesce(var.destinations, [
    "tcp kms.${var.region}.amazonaws.com:443",
    "tcp sqs.${var.region}.amazonaws.com:443",
    "tcp 169.254.169.254:80",
    "udp 169.254.169.123:123",
  ])

  sources = {
    "/usr/bin/host-netd"                       = var.host_netd
    "/usr/bin/run-enclave"                     = "${path.module}/../../run-enclave"
    "/var/lib/enclaves/${var.enclave_cid}.eif" = var.image
    "/etc/systemd/system/host-netd.service"    = "${path.module}/../systemd/host-netd.service"
    "/etc/systemd/system/enclave@.service"     = "${path.module}/../systemd/enclave@.service"
    "/etc/sysctl.d/60-host-netd.conf"          = "${path.module}/../sysctl.d/60-host-netd.conf"
  }

  rendered = {
    "/etc/sysctl.d/61-published-ports.conf" = "net.ipv4.ip_unprivileged_port_start = ${min(1024, local.published[*].port...)}\n"
    "/etc/enclaves/${var.enclave_cid}.conf" = "MEMORY_MIB=${var.enclave_memory_mib}\nCPUS=${var.enclave_cpus}\n"
    "/etc/nitro_enclaves/allocator.yaml" = templatefile("${path.module}/templates/allocator.yaml.tftpl", {
      memory_mib = var.enclave_memory_mib
      cpu_count  = var.enclave_cpus
    })
    "/etc/host-netd/host-netd.toml" = templatefile("${path.module}/templates/host-netd.toml.tftpl", {
      cid          = var.enclave_cid
      publish      = var.publish
      destinations = local.destinations
    })
  }

  checksums = merge(
    { for path, source in local.sources : path => filesha256(source) },
    { for path, content in local.rendered : path => sha256(content) },
  )

  user_data = templatefile("${path.module}/templates/user-data.yaml.tftpl", {
    install  = file("${path.module}/templates/install-enclave")
    settings = "BUCKET=${local.bucket}\nREGION=${var.region}\nCID=${var.enclave_cid}\n"
    manifest = join("", [for path, checksum in local.checksums : "${checksum}  ${path}\n"])
  })
}

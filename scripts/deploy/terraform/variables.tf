# What has no default has to be set: see terraform.tfvars.example.

variable "image" {
  description = "Path of the enclave image that scripts/build-enclave made, with AWS's kernel."
  type        = string

  validation {
    condition     = endswith(var.image, ".eif") && fileexists(var.image)
    error_message = "There is no such .eif file: scripts/build-enclave makes one."
  }
}

variable "pcr_values" {
  description = "Path of the image's measurements, pcr-values.json: only an enclave that has them may use the key."
  type        = string

  validation {
    condition     = can(regex("^[0-9A-Fa-f]{96}$", try(jsondecode(file(var.pcr_values)).Measurements.PCR0, jsondecode(file(var.pcr_values)).PCR0)))
    error_message = "Not a file of measurements: scripts/build-enclave writes pcr-values.json beside the image."
  }
  validation {
    condition     = alltrue([for value in values(try(jsondecode(file(var.pcr_values)).Measurements, jsondecode(file(var.pcr_values)), {})) : !can(regex("^0+$", value))])
    error_message = "A measurement is zero: every enclave in debug mode has it, so the key would be open to all of them. Take the values that the build of the image wrote."
  }
}

variable "former_pcr_values" {
  description = "Paths of the measurements of further images that may use the key, such as the former one's during a change."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for path in var.former_pcr_values : can(regex("^[0-9A-Fa-f]{96}$", try(jsondecode(file(path)).Measurements.PCR0, jsondecode(file(path)).PCR0)))])
    error_message = "Not all of these are files of measurements, as scripts/build-enclave writes them."
  }
  validation {
    condition     = alltrue(flatten([for path in var.former_pcr_values : [for value in values(try(jsondecode(file(path)).Measurements, jsondecode(file(path)), {})) : !can(regex("^0+$", value))]]))
    error_message = "A measurement is zero: every enclave in debug mode has it, so the key would be open to all of them."
  }
}

variable "clients" {
  description = "IPv4 networks (CIDR) that may reach the published ports; [\"0.0.0.0/0\"] is everybody."
  type        = list(string)

  validation {
    condition     = length(var.clients) > 0 && alltrue([for network in var.clients : can(cidrhost(network, 0)) && !strcontains(network, ":")])
    error_message = "Name at least one IPv4 network, such as 203.0.113.0/24."
  }
}

variable "host_netd" {
  description = "Path of host-netd, linked statically: Amazon Linux's C library is older than most."
  type        = string
  default     = "../../../target/x86_64-unknown-linux-musl/release/host-netd"

  validation {
    condition     = fileexists(var.host_netd)
    error_message = "There is no such program: rustup target add x86_64-unknown-linux-musl && cargo build --release --locked --target x86_64-unknown-linux-musl -p host-netd makes it."
  }
}

variable "region" {
  description = "Where everything is made."
  type        = string
  default     = "us-east-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "Not the name of a region, such as us-east-1."
  }
  validation {
    condition     = !can(regex("^cn-|-iso", var.region))
    error_message = "AWS's names end with amazonaws.com here. They end differently in China and in isolated regions, which this is not made for."
  }
}

variable "name" {
  description = "What the names of all that is made begin with."
  type        = string
  default     = "enclave"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,25}$", var.name))
    error_message = "Up to 26 small letters, digits and hyphens, the first a letter."
  }
}

variable "instance_type" {
  description = "The parent's type: x86_64, at least 4 vCPUs, able to have enclaves. It keeps what enclave_cpus and enclave_memory_mib leave."
  type        = string
  default     = "c6a.xlarge"

  validation {
    condition     = can(regex("^[a-z0-9-]+\\.[0-9]*x?large$", var.instance_type)) && !can(regex("^(t[0-9]|[a-z]+[0-9]+g)|\\.large$", var.instance_type))
    error_message = "Burstable (t3), bare metal and Graviton types and those of 2 vCPUs cannot run this image: take one such as c6a.xlarge."
  }
}

variable "ami" {
  description = "The parent's Amazon Linux 2023, or null for the newest one. A newer one replaces the instance at the next apply."
  type        = string
  default     = null
}

variable "root_volume_gib" {
  description = "Size of the parent's disk. The image lies on it twice while it is fetched."
  type        = number
  default     = 16

  validation {
    condition     = var.root_volume_gib >= 8 && var.root_volume_gib <= 16384
    error_message = "From 8 to 16384 GiB."
  }
}

variable "enclave_memory_mib" {
  description = "The enclave's memory: at least four times the image, and what its program needs."
  type        = number
  default     = 1024

  validation {
    condition     = var.enclave_memory_mib >= 128 && floor(var.enclave_memory_mib) == var.enclave_memory_mib
    error_message = "A whole number of MiB, and at least 128."
  }
}

variable "enclave_cpus" {
  description = "The enclave's vCPUs: whole cores, which have two each."
  type        = number
  default     = 2

  validation {
    condition     = var.enclave_cpus >= 2 && var.enclave_cpus % 2 == 0
    error_message = "An even number: enclaves get whole cores."
  }
}

variable "enclave_cid" {
  description = "The enclave's vsock address."
  type        = number
  default     = 16

  validation {
    condition     = var.enclave_cid >= 4 && var.enclave_cid <= 999999999 && floor(var.enclave_cid) == var.enclave_cid
    error_message = "From 4 on: 0 to 3 are the hypervisor, loopback and the parent."
  }
}

variable "publish" {
  description = "Ports of the parent that lead to the enclave, as host-netd's 'publish': PORT[:ENCLAVE_PORT][/tcp|/udp]."
  type        = list(string)
  default     = ["443"]

  validation {
    condition     = alltrue([for port in var.publish : can(regex("^[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?(/(tcp|udp))?$", port))])
    error_message = "Each is PORT[:ENCLAVE_PORT][/tcp|/udp], such as 443, 8443:443 or 53/udp."
  }
  validation {
    condition     = alltrue([for number in flatten([for port in var.publish : regexall("[0-9]+", port)]) : tonumber(number) <= 65535])
    error_message = "Ports go up to 65535."
  }
}

variable "destinations" {
  description = "What the enclave may reach, as host-netd's rules without 'allow'; nothing else is. null: KMS and SQS of the region, the role's credentials and Amazon's time service."
  type        = list(string)
  default     = null

  validation {
    condition     = alltrue([for destination in coalesce(var.destinations, []) : can(regex("^((tcp|udp|icmp) )?[0-9A-Za-z.:*/_-]+$", destination))])
    error_message = "Each is [tcp|udp|icmp] HOST[:PORT[-PORT]], such as tcp api.example.com:443."
  }
}

variable "key_administrators" {
  description = "ARNs of who may administer the key; they cannot use it. Empty: whom the account's IAM policies permit it. Whoever applies this must be among them."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.key_administrators : can(regex("^arn:[a-z-]+:(iam|sts)::[0-9]{12}:", arn))])
    error_message = "Each is the ARN of a role, a user or an account's root."
  }
}

variable "senders" {
  description = "ARNs of who may encrypt with the key, send to the queue of cards and read the queue of results, from anywhere."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.senders : can(regex("^arn:[a-z-]+:(iam|sts)::[0-9]{12}:", arn))])
    error_message = "Each is the ARN of a role, a user or an account's root."
  }
}

variable "network" {
  description = "IPv4 network of the VPC and its only subnet."
  type        = string
  default     = "10.64.0.0/24"

  validation {
    condition     = can(cidrhost(var.network, 1)) && can(regex("/(1[6-9]|2[0-8])$", var.network))
    error_message = "An IPv4 network of a size from /16 to /28."
  }
}

variable "name" {
  description = "Name of the launch template: unique in the region, and the same whenever the attempt is applied, so that a repeated apply fails instead of making a second one."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-zA-Z0-9()./_-]{3,128}$", var.name))
    error_message = "name must have 3 to 128 letters, digits or ()./_- characters."
  }
}

variable "tags" {
  description = "The seven tags, on everything that is billed: a sweep finds a leak by nothing else."
  type        = map(string)
  nullable    = false
  validation {
    condition = length(setsubtract([
      "mlinfra-prefect:ledger", "mlinfra-prefect:lease", "mlinfra-prefect:attempt", "mlinfra-prefect:flow-run",
      "mlinfra-prefect:owner", "mlinfra-prefect:environment", "mlinfra-prefect:deadline",
    ], keys(var.tags))) == 0
    error_message = "tags must have all of mlinfra-prefect:{ledger,lease,attempt,flow-run,owner,environment,deadline}."
  }
  validation {
    condition     = alltrue([for value in values(var.tags) : length(value) > 0 && length(value) <= 256])
    error_message = "Every tag needs a value of 1 to 256 characters."
  }
}

variable "market" {
  description = "How the instances are paid."
  type        = string
  nullable    = false
  default     = "on-demand"
  validation {
    condition     = contains(["on-demand", "spot"], var.market)
    error_message = "market must be on-demand or spot."
  }
}

variable "candidates" {
  description = "Types and zones that will do, the one to try first standing first. max_price (dollars an hour, spot only) is the most that is paid for that one."
  type = list(object({
    instance_type = string
    zone          = string
    subnet_id     = string
    max_price     = optional(string)
  }))
  nullable = false
  validation {
    condition     = length(var.candidates) >= 1 && length(var.candidates) <= 300
    error_message = "candidates must have 1 to 300 entries, as many as one fleet takes."
  }
  validation {
    condition     = alltrue([for each in var.candidates : can(regex("^subnet-[0-9a-f]+$", each.subnet_id))])
    error_message = "Every subnet_id must look like subnet-0a1b2c."
  }
  validation {
    condition     = length(distinct([for each in var.candidates : "${each.instance_type} ${each.subnet_id}"])) == length(var.candidates)
    error_message = "A type may stand once for each subnet: the fleet refuses a repeated pool."
  }
  validation {
    condition     = alltrue([for each in var.candidates : each.max_price == null || can(tonumber(each.max_price))])
    error_message = "max_price must be a number of dollars an hour, as text."
  }
}

variable "nodes" {
  description = "How many instances are wanted. Fewer may come: success is what exists."
  type        = number
  nullable    = false
  default     = 1
  validation {
    condition     = var.nodes >= 1 && floor(var.nodes) == var.nodes
    error_message = "nodes must be a whole number, at least 1."
  }
}

variable "image_id" {
  description = "The machine image, with driver and Python 3.11 or newer."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^ami-[0-9a-f]+$", var.image_id))
    error_message = "image_id must look like ami-0a1b2c."
  }
}

variable "root_device" {
  description = "Device name of the image's root volume, as the image says it; another name would add a second disk."
  type        = string
  nullable    = false
  default     = "/dev/sda1"
  validation {
    condition     = startswith(var.root_device, "/dev/")
    error_message = "root_device must begin with /dev/."
  }
}

variable "disk_gib" {
  description = "Size of the root volume in GiB; at least the image's own."
  type        = number
  nullable    = false
  default     = 100
  validation {
    condition     = var.disk_gib >= 1 && var.disk_gib <= 16384 && floor(var.disk_gib) == var.disk_gib
    error_message = "disk_gib must be a whole number from 1 to 16384."
  }
}

variable "kms_key_id" {
  description = "ARN of the key that encrypts the disk; empty: the account's own EBS key."
  type        = string
  nullable    = false
  default     = ""
  validation {
    condition     = var.kms_key_id == "" || startswith(var.kms_key_id, "arn:")
    error_message = "kms_key_id must be a key's ARN, or empty."
  }
}

variable "instance_profile" {
  description = "Name of the instance profile of the node role."
  type        = string
  nullable    = false
}

variable "security_group_ids" {
  description = "Security groups of the nodes; none of them should let anything in."
  type        = list(string)
  nullable    = false
  validation {
    condition     = length(var.security_group_ids) >= 1 && alltrue([for id in var.security_group_ids : can(regex("^sg-[0-9a-f]+$", id))])
    error_message = "security_group_ids needs at least one id like sg-0a1b2c."
  }
}

variable "public_ip" {
  description = "Whether the nodes get a public address: the way out of a subnet without a NAT gateway. Nothing comes in by it."
  type        = bool
  nullable    = false
  default     = false
}

variable "dead_man_minutes" {
  description = "After how many minutes a node powers off, whatever else happens; powering off terminates it."
  type        = number
  nullable    = false
  validation {
    condition     = var.dead_man_minutes >= 1 && floor(var.dead_man_minutes) == var.dead_man_minutes
    error_message = "dead_man_minutes must be a whole number, at least 1."
  }
}

variable "boot" {
  description = "What boot.sh is told: one JSON object in base64 without line breaks. It holds no secret but a link that reads the agent's archive for a while."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[A-Za-z0-9+/]+={0,2}$", var.boot))
    error_message = "boot must be base64 in one line: it becomes a line of a shell script."
  }
}

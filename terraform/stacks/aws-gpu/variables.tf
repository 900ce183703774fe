variable "mlinfra" {
  description = "Whose attempt this is; the same object goes to every root module (docs/terraform-contract.md)."
  type = object({
    ledger_id   = string
    lease_id    = string
    attempt     = number
    deadline    = string # epoch seconds; empty: none
    environment = string
    tags        = map(string)
  })
  nullable = false
  validation {
    condition     = alltrue([for id in [var.mlinfra.ledger_id, var.mlinfra.lease_id] : can(regex("^[a-z0-9][a-z0-9-]{0,62}$", id))])
    error_message = "ledger_id and lease_id must match ^[a-z0-9][a-z0-9-]{0,62}$."
  }
  validation {
    condition     = var.mlinfra.attempt >= 1 && floor(var.mlinfra.attempt) == var.mlinfra.attempt
    error_message = "attempt must be a whole number, counted from 1."
  }
  validation {
    condition     = var.mlinfra.deadline == "" || can(tonumber(var.mlinfra.deadline))
    error_message = "deadline must be epoch seconds, or empty."
  }
}

variable "region" {
  description = "Where the attempt is."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "region must look like eu-central-1."
  }
}

# The module checks these.
variable "market" {
  description = "How the instances are paid."
  type        = string
  nullable    = false
  default     = "on-demand"
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
}

variable "nodes" {
  description = "How many instances are wanted. Fewer may come: success is what exists."
  type        = number
  nullable    = false
  default     = 1
}

variable "image_id" {
  description = "The machine image, with driver and Python 3.11 or newer."
  type        = string
  nullable    = false
}

variable "root_device" {
  description = "Device name of the image's root volume, as the image says it; another name would add a second disk."
  type        = string
  nullable    = false
  default     = "/dev/sda1"
}

variable "disk_gib" {
  description = "Size of the root volume in GiB; at least the image's own."
  type        = number
  nullable    = false
  default     = 100
}

variable "kms_key_id" {
  description = "ARN of the key that encrypts the disk; empty: the account's own EBS key."
  type        = string
  nullable    = false
  default     = ""
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
}

variable "boot" {
  description = "What boot.sh is told: one JSON object in base64 without line breaks. It holds no secret but a link that reads the agent's archive for a while."
  type        = string
  nullable    = false
}

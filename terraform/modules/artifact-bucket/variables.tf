variable "name" {
  description = "Name of the bucket."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.name))
    error_message = "name must be a bucket's: 3 to 63 lower-case letters, digits, dots and dashes."
  }
}

variable "tags" {
  description = "Tags of the bucket. What an environment shares carries mlinfra-prefect:environment and mlinfra-prefect:shared, and is never swept."
  type        = map(string)
  nullable    = false
  default     = {}
}

variable "kms_key_arn" {
  description = "ARN of the key that encrypts what lies in it; empty: S3's own."
  type        = string
  nullable    = false
  default     = ""
  validation {
    condition     = var.kms_key_arn == "" || startswith(var.kms_key_arn, "arn:")
    error_message = "kms_key_arn must be a key's ARN, or empty."
  }
}

variable "node_days" {
  description = "After how many days a node's mailbox is deleted; longer than any lease lives. What is to be kept is copied out of it."
  type        = number
  nullable    = false
  default     = 45
  validation {
    condition     = var.node_days >= 1 && floor(var.node_days) == var.node_days
    error_message = "node_days must be a whole number, at least 1."
  }
}

variable "force_destroy" {
  description = "Whether destroying the bucket also deletes what lies in it: mailboxes and checkpoints."
  type        = bool
  nullable    = false
  default     = false
}

variable "emulated" {
  description = "Whether AWS is an emulator on this host: it speaks plain HTTP, which the bucket otherwise refuses, and nothing in it expires, so nobody waits for rules that say when."
  type        = bool
  nullable    = false
  default     = false
}

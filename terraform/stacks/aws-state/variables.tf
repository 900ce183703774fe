variable "environment" {
  description = "The environment, such as dev, staging or prod. Each has states, roles and buckets of its own."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,38}$", var.environment))
    error_message = "environment must have 1 to 39 lower-case letters, digits and dashes: it is part of a role's name."
  }
}

variable "region" {
  description = "The home region of the environment."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "region must look like eu-central-1."
  }
}


variable "bucket" {
  description = "Name of the bucket for states and ledger."
  type        = string
  nullable    = false
}

variable "noncurrent_days" {
  description = "How many days an overwritten or deleted state can still be had back."
  type        = number
  nullable    = false
  default     = 30
}

variable "force_destroy" {
  description = "Whether destroying the bucket also deletes what lies in it."
  type        = bool
  nullable    = false
  default     = false
}

variable "emulated" {
  description = "Whether AWS is an emulator on this host: plain HTTP is let in, and no rule of expiry is made."
  type        = bool
  nullable    = false
  default     = false
}

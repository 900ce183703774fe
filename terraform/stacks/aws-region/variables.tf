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
  description = "A further region of the environment."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "region must look like eu-central-1."
  }
}


variable "profile" {
  description = "Profile of the environment; only default has further regions."
  type        = string
  nullable    = false
  default     = "default"
  validation {
    condition     = var.profile == "default"
    error_message = "Profile hardened is for one region: its nodes reach their mailbox through the S3 endpoint of their own region only."
  }
}

variable "egress" {
  description = "What nodes reach; only internet has further regions."
  type        = string
  nullable    = false
  default     = "internet"
  validation {
    condition     = var.egress == "internet"
    error_message = "In a further region egress must be internet: the mailboxes lie in the home region, and S3's gateway endpoint leads to its own region only."
  }
}

variable "zones" {
  description = "Availability zones, one subnet in each; add new ones at the end."
  type        = list(string)
  nullable    = false
}

variable "cidr" {
  description = "Addresses of the network."
  type        = string
  nullable    = false
  default     = "10.64.0.0/16"
}

variable "name" {
  description = "What the network's parts are called; for people."
  type        = string
  nullable    = false
}

variable "tags" {
  description = "Tags of everything. What an environment shares carries mlinfra-prefect:environment and mlinfra-prefect:shared, and is never swept."
  type        = map(string)
  nullable    = false
  default     = {}
}

variable "region" {
  description = "Where the network is; the names of the services it reaches contain it."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "region must look like eu-central-1."
  }
}

variable "cidr" {
  description = "Addresses of the network, divided into sixteen subnets of equal size. Nothing is peered, so networks may have the same."
  type        = string
  nullable    = false
  default     = "10.64.0.0/16"
  validation {
    condition     = can(cidrsubnet(var.cidr, 4, 15)) && try(tonumber(split("/", var.cidr)[1]), 0) <= 24 && try(tonumber(split("/", var.cidr)[1]), 0) >= 16
    error_message = "cidr must be an IPv4 range between /16 and /24, such as 10.64.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones, one subnet in each. Add new ones at the end: a subnet's range follows from its place."
  type        = list(string)
  nullable    = false
  validation {
    condition     = length(var.zones) >= 1 && length(var.zones) <= 16 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones must name 1 to 16 different zones."
  }
  validation {
    condition     = alltrue([for zone in var.zones : startswith(zone, var.region)])
    error_message = "Every zone must lie in the region."
  }
}

variable "egress" {
  description = "What nodes reach: internet (everything), mirror (S3, the services below and the ranges of mirrors) or none (S3 and the services)."
  type        = string
  nullable    = false
  default     = "internet"
  validation {
    condition     = contains(["internet", "mirror", "none"], var.egress)
    error_message = "egress must be internet, mirror or none."
  }
}

variable "mirrors" {
  description = "Ranges, as CIDR, in which package mirrors answer on port 443; with egress mirror only."
  type        = list(string)
  nullable    = false
  default     = []
  validation {
    condition     = alltrue([for range in var.mirrors : can(cidrhost(range, 0))])
    error_message = "Every mirror must be a CIDR such as 10.0.8.0/24."
  }
  validation {
    condition     = length(var.mirrors) == 0 || var.egress == "mirror"
    error_message = "mirrors need egress mirror."
  }
}

variable "services" {
  description = "AWS services with an interface endpoint, such as ssm. Each costs by the hour in every zone."
  type        = set(string)
  nullable    = false
  default     = []
}

variable "buckets" {
  description = "Names of the buckets that can be reached through the gateway endpoint; empty: any. Without such a list nodes without a way to the internet could still write to somebody else's bucket."
  type        = list(string)
  nullable    = false
  default     = []
}

terraform {
  required_version = ">= 1.10"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }
  }
}

# Endpoint and credentials come from the environment. Who we are was asked before Terraform started, so the provider
# does not ask again at each of its starts. Its metadata check stays: a keeper on EC2 has its credentials from there.
provider "aws" {
  region                      = var.region
  max_retries                 = 4 # the ladder tries elsewhere; the provider's own patience is a quarter of an hour
  skip_credentials_validation = true
  skip_region_validation      = true
  skip_requesting_account_id  = true
}

# A further region is a network, and only where its nodes can reach the home region.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  environment = "dev"
  region      = "eu-west-1"
  zones       = ["eu-west-1a"]
}

run "has_a_way_to_the_home_region" {
  command = plan
  assert {
    condition     = output.public_ip && output.kms_key_arn == ""
    error_message = "Mailboxes lie in the home region, which is reached over the internet."
  }
}

run "refuses_to_be_hardened" {
  command = plan
  variables {
    profile = "hardened"
  }
  expect_failures = [var.profile]
}

run "refuses_to_have_no_way_out" {
  command = plan
  variables {
    egress = "none"
  }
  expect_failures = [var.egress]
}

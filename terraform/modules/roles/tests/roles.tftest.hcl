# Shapes only: what the policies allow and deny is tried in tests/terraform_modules.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_resource "aws_iam_policy" {
    defaults = { arn = "arn:aws:iam::123456789012:policy/mock" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock", unique_id = "AROAMOCK" }
  }
}

variables {
  environment     = "dev"
  state_bucket    = "state-1"
  artifact_bucket = "artifacts-1"
}

run "one_role_serves_every_node" {
  command = apply
  assert {
    condition     = output.instance_profile == "mlinfra-prefect-node-dev" && output.node_role_id == "AROAMOCK"
    error_message = "The node role is named after its environment."
  }
  assert {
    condition     = strcontains(aws_iam_role_policy.node.policy, "nodes/$${aws:userid}/in/*")
    error_message = "Whose mailbox it is has to be said by aws:userid."
  }
}

run "policies_fit_into_what_iam_takes" {
  command = plan
  variables {
    encrypted     = true
    environment   = "an-environment-with-a-name-of-forty-char"
    input_buckets = ["a-bucket-of-inputs-1", "a-bucket-of-inputs-2", "a-bucket-of-inputs-3"]
  }
  assert {
    condition     = alltrue([for policy in [aws_iam_policy.creating.policy, aws_iam_policy.ending.policy, aws_iam_policy.storing.policy] : length(policy) <= 6144])
    error_message = "A managed policy has at most 6144 characters."
  }
}

run "the_reaper_creates_nothing" {
  command = plan
  assert {
    condition     = keys(aws_iam_role_policy_attachment.reaper) == ["ending", "storing"]
    error_message = "The reaper looks, ends, and writes the ledger."
  }
}

run "the_account_decides_unless_somebody_is_named" {
  command = plan
  assert {
    condition     = jsondecode(aws_iam_role.creator.assume_role_policy).Statement[0].Principal.AWS == ["arn:aws:iam::123456789012:root"]
    error_message = "The account's root stands for its own policies."
  }
}

run "named_ones_are_trusted_and_nobody_else" {
  command = plan
  variables {
    trusted_arns = ["arn:aws:iam::123456789012:role/prefect-worker"]
  }
  assert {
    condition     = jsondecode(aws_iam_role.reaper.assume_role_policy).Statement[0].Principal.AWS == ["arn:aws:iam::123456789012:role/prefect-worker"]
    error_message = "Only the worker is trusted."
  }
}

run "refuses_one_bucket_for_both" {
  command = plan
  variables {
    artifact_bucket = "state-1"
  }
  expect_failures = [var.artifact_bucket]
}

run "refuses_to_trust_everybody" {
  command = plan
  variables {
    trusted_arns = ["arn:aws:iam::*:role/worker"]
  }
  expect_failures = [var.trusted_arns]
}

run "refuses_secrets_by_wildcard" {
  command = plan
  variables {
    secret_arns = ["arn:aws:secretsmanager:eu-central-1:123456789012:secret:*"]
  }
  expect_failures = [var.secret_arns]
}

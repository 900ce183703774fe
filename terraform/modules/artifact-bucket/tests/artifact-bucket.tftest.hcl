# What is expired, and what is kept.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  name = "mlinfra-prefect-artifacts-dev-123456789012-eu-central-1"
}

run "forgets_mailboxes_and_keeps_checkpoints" {
  command = plan
  assert {
    condition     = { for rule in aws_s3_bucket_lifecycle_configuration.artifacts[0].rule : rule.id => length(rule.expiration) } == { mailboxes = 1, unfinished-uploads = 0 }
    error_message = "Only mailboxes expire."
  }
  assert {
    condition     = one(aws_s3_bucket_lifecycle_configuration.artifacts[0].rule[0].filter).prefix == "nodes/" && one(aws_s3_bucket_lifecycle_configuration.artifacts[0].rule[0].expiration).days == 45
    error_message = "Mailboxes expire after 45 days, longer than any lease lives."
  }
  assert {
    condition     = one(aws_s3_bucket_lifecycle_configuration.artifacts[0].rule[1].abort_incomplete_multipart_upload).days_after_initiation == 1
    error_message = "Unfinished uploads are billed and have to go, wherever they are."
  }
}

run "is_closed_to_the_public" {
  command = plan
  assert {
    condition = alltrue([
      aws_s3_bucket_public_access_block.artifacts.block_public_acls, aws_s3_bucket_public_access_block.artifacts.block_public_policy,
      aws_s3_bucket_public_access_block.artifacts.ignore_public_acls, aws_s3_bucket_public_access_block.artifacts.restrict_public_buckets,
    ])
    error_message = "All four blocks have to stand."
  }
}

run "an_emulator_speaks_plain_http" {
  command = plan
  variables {
    emulated = true
  }
  assert {
    condition     = length(aws_s3_bucket_policy.artifacts) == 0 && length(aws_s3_bucket_lifecycle_configuration.artifacts) == 0
    error_message = "Neither the rule of TLS nor that of expiry makes sense there."
  }
}

run "refuses_a_key_that_is_no_arn" {
  command = plan
  variables {
    kms_key_arn = "alias/mine"
  }
  expect_failures = [var.kms_key_arn]
}

run "refuses_a_fraction_of_a_day" {
  command = plan
  variables {
    node_days = 0.5
  }
  expect_failures = [var.node_days]
}

# The ledger and the mailboxes. Terraform's states of the shared stacks are not among it: they are whoever runs `init`'s.
locals {
  storing_policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid      = "TheLedger"
        Effect   = "Allow"
        Action   = ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
        Resource = "${local.state_arn}/ledger/*"
      },
      {
        Sid      = "WhatTheEnvironmentShares"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "${local.state_arn}/environment.json"
      },
      {
        Sid      = "MailboxesAndCheckpoints"
        Effect   = "Allow"
        Action   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
        Resource = [for place in ["agents/*", "nodes/*", "checkpoints/${var.environment}/*"] : "${local.artifacts}/${place}"]
      },
      {
        Sid      = "SeeTheBuckets"
        Effect   = "Allow"
        Action   = ["s3:GetBucketLocation", "s3:GetBucketPublicAccessBlock", "s3:GetBucketVersioning", "s3:ListBucket"]
        Resource = [local.state_arn, local.artifacts] # listing tells names; without it an absent object looks forbidden
      },
      ], length(var.input_buckets) > 0 ? [{
        Sid      = "LinksToInputs"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:ListBucket"]
        Resource = flatten([for bucket in var.input_buckets : ["arn:${local.partition}:s3:::${bucket}", "arn:${local.partition}:s3:::${bucket}/*"]])
        }] : [], var.encrypted ? [{
        Sid      = "OnlyThroughS3"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource = "arn:${local.partition}:kms:*:${local.account}:key/*"
        Condition = {
          StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment }
          StringLike   = { "kms:ViaService" = "s3.*.amazonaws.com" }
        }
    }] : [])
  })
}
